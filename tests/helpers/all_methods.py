"""Every method of configs/method, made as a run makes it; a new configuration is covered without a change here."""

from __future__ import annotations

import copy
from typing import Any

import hydra
from torch import nn

from helpers.compositions import composed
from tta.cli import CONFIGS
from tta.methods import Method

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
QUICK: dict[str, dict[str, Any]] = {
    "cotta": {"augmentations": 2},
    "eata": {"fisher": {"limit": 8}},
    "lame": {"max_steps": 5},
    "memo": {"augmentations": 2},
    "rotta": {"memory": 8, "update_every": 8},  # so that every batch updates
}
"""Arguments that make a method quick enough for tests of all."""


def make_method(name: str, backbone: nn.Module, lr: float = 0.1, **arguments: Any) -> Method:
    """Make a method around a backbone, quick and with a large learning rate; ``arguments`` replace others."""
    config = copy.deepcopy(composed(f"method={name}"))
    config.optimizer.lr = lr
    made: Method = hydra.utils.instantiate(
        config.method, backbone=backbone, _convert_="all", **{**QUICK.get(name, {}), **arguments}
    )
    return made
