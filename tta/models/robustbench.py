"""RobustBench's zoo, and what its package needs to be importable."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

from tta.models.backbone import Backbone
from tta.models.weights import first_line, refuse_html
from tta.utils.paths import cache_dir


def robustbench_backbone(
    name: str, dataset: str = "cifar10", threat_model: str = "corruptions", model_dir: str | None = None
) -> Backbone:
    """Load a model of RobustBench's zoo; it takes images in [0, 1] and normalises by itself where it must.

    Args:
        name: as in the zoo, e.g. ``Standard`` or ``Hendrycks2020AugMix_WRN``.
        dataset: ``cifar10``, ``cifar100`` or ``imagenet``.
        threat_model: ``corruptions``, ``corruptions_3d``, ``Linf`` or ``L2``.
        model_dir: where weights are kept; by default in the cache.

    Raises:
        ValueError: for an unknown name, data set or threat model, or weights that are none (a failed download).
        OSError: if the weights cannot be downloaded.
    """
    utils = import_robustbench("utils")
    dataset_key = _choice(utils.BenchmarkDataset, dataset, "model.dataset")
    threat_key = _choice(utils.ThreatModel, threat_model, "model.threat_model")
    # The 3D corruptions are another test set for the same models.
    group = utils.ThreatModel(threat_key.value.replace("_3d", ""))
    known = utils.all_models[dataset_key].get(group, {})
    if name not in known:
        there = ", ".join(sorted(known)) or "none"
        raise ValueError(f"RobustBench has no model {name!r} for {dataset} and {threat_model}; it has: {there}")
    root = Path(model_dir).expanduser() if model_dir else cache_dir() / "robustbench"
    root.mkdir(parents=True, exist_ok=True)
    path = root / dataset_key.value / group.value / f"{name}.pt"
    try:
        net = utils.load_model(name, model_dir=root, dataset=dataset_key, threat_model=threat_key)
    except Exception as error:  # of requests, gdown, pickle, torch
        if not path.is_file():
            raise OSError(
                f"RobustBench could not download {name!r} ({type(error).__name__}: {error}). Without a connection, "
                f"put its weights at {path}"
            ) from error
        refuse_html(path)
        raise ValueError(
            f"RobustBench could not load {name!r} ({type(error).__name__}: {first_line(error)}). If {path} are not "
            "its weights, delete the file and run again"
        ) from error
    weights_id = f"robustbench:{dataset}/{group.value}/{name}"
    backbone = Backbone(net, utils.DATASET_CLASSES[dataset_key], None, None, weights_id)
    backbone.has_random_weights = False
    return backbone


def import_robustbench(module: str) -> Any:
    """Import ``robustbench.<module>``, the one place that knows what version 1.1.1 needs to be importable.

    It imports ``autoattack``, though the package it depends on is called ``pyautoattack``, and ``pkg_resources``, which
    announces its own end.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "autoattack" not in sys.modules:
            sys.modules["autoattack"] = importlib.import_module("pyautoattack")
        return importlib.import_module(f"robustbench.{module}")


def _choice(kinds: Any, value: str, key: str) -> Any:
    try:
        return kinds(value)
    except ValueError:
        raise ValueError(f"{key} must be one of {', '.join(kind.value for kind in kinds)}; got {value!r}") from None
