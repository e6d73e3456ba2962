"""Hyper-parameters, against those that were published."""

from __future__ import annotations

import inspect
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from helpers.compositions import composed
from tta.cli import CONFIGS

# Written out from the papers and, where those leave it open, the official code. Margins are fractions of ln C.
PUBLISHED: dict[str, dict[str, Any]] = {
    "objective=em": {},
    "objective=cadf": {},
    "objective=dem": {"tau": 1, "alpha": 1},
    # arXiv:2511.03256, section 4 and figures 10 to 12
    "objective=adadem": {"momentum": 0.1, "alpha": 1, "norm": "l1", "reward": "cadf"},
    "objective=adadem_norm": {"normalize": True, "calibrate": False},
    "objective=adadem_mec": {"normalize": False, "calibrate": True, "momentum": 0.1},
    "objective=adadem_v": {"normalize": True, "calibrate": True, "reward": "entropy"},
    "objective=slr": {"clip": 0.99, "eps": 1e-5},
    "method=tent": {"steps": 1},
    # arXiv:2204.02610 (ImageNet-C)
    "method=eta": {"margin": 0.4, "diversity": 0.05, "momentum": 0.1},
    "method=eata": {"margin": 0.4, "diversity": 0.05, "momentum": 0.1, "fisher_alpha": 2000},
    "method=rdumb": {"margin": 0.4, "diversity": 0.05, "momentum": 0.1, "reset_every": 1000},  # arXiv:2306.05401
    "method=sar": {"margin": 0.4, "rho": 0.05, "recovery": 0.2, "momentum": 0.9},  # arXiv:2302.12400
    "method=deyo": {"margin": 0.5, "entropy_reference": 0.4, "plpd": 0.2, "patches": 4},  # arXiv:2403.07366
    "method=cotta": {"teacher_momentum": 0.999, "restore": 0.01, "augmentations": 32, "confidence": 0.92},
    "method=rotta": {"memory": 64, "update_every": 64, "share": 0.05, "teacher_momentum": 0.001,
                     "timeliness_weight": 1, "uncertainty_weight": 1},  # arXiv:2303.13899
    "method=roid": {"temperature": 1 / 3, "class_momentum": 0.9, "source_share": 0.01},  # arXiv:2306.00650
    "method=memo": {"augmentations": 32, "prior": 16, "steps": 1},  # arXiv:2110.09506
    "method=lame": {"neighbours": 5, "max_steps": 100},  # arXiv:2201.05718
    "method=t3a": {"supports_per_class": 100},
    "method=bn_alpha": {"share": 0.1, "prior": None},
    "method=bn_ema": {"share": 0.1},
    "scenario=single_domain": {"reset": "domain", "order": "shuffle", "rounds": 1, "mix": False},
    "scenario=continual": {"reset": "never", "order": "shuffle", "rounds": 1, "mix": False},
    "scenario=episodic": {"reset": "batch"},
}  # fmt: skip


def values_of(choice: str) -> dict[str, Any]:
    config = composed("stream=clean", "model=timm", choice)  # which have no hyper-parameters of their own
    return OmegaConf.to_container(config[choice.partition("=")[0]])  # type: ignore[return-value]


@pytest.mark.parametrize("group", ["objective", "method", "scenario"])
def test_config__has_the_published_values(group: str) -> None:
    published = {choice: values for choice, values in PUBLISHED.items() if choice.startswith(group)}
    found = {choice: values_of(choice) for choice in published}
    assert {c: {key: found[c][key] for key in values} for c, values in published.items()} == published


@pytest.mark.parametrize(
    ("group", "variants"),
    [
        ("method", {}),
        ("objective", {"adadem_norm": {"calibrate"}, "adadem_mec": {"normalize"}, "adadem_v": {"reward"}}),
    ],
)
def test_config__agrees_with_defaults_of_the_class(group: str, variants: dict[str, set[str]]) -> None:
    """A class created without arguments does what its configuration says, except for the keys that make a variant."""
    found: dict[str, set[str]] = {}
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        values = values_of(f"{group}={path.stem}")
        defaults: dict[str, Any] = {}
        for kind in reversed(inspect.getmro(hydra.utils.get_class(values["_target_"]))):
            if "__init__" in vars(kind):
                parameters = inspect.signature(kind).parameters.values()
                defaults |= {one.name: one.default for one in parameters if one.default is not one.empty}
        plain = {key: value for key, value in values.items() if key in defaults and not isinstance(value, str | dict)}
        plain |= {key: value for key, value in values.items() if key in variants.get(path.stem, ())}
        found[path.stem] = {key for key, value in plain.items() if value != defaults[key]}
    assert {name: keys for name, keys in found.items() if keys} == variants
