"""A run's fingerprint: equal for runs that must give the same result, and for no others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

RESULT_FORMAT = 1
"""Raised when the meaning of a result changes, so that older results are not taken for new ones."""

HASHED_GROUPS = ("model", "stream", "scenario", "method", "seed", "precision")
"""Parts of a configuration that determine a result; objective and optimizer are within the method that uses them."""

UNHASHED_KEYS = (
    "stream.root",
    "stream.source",
    "stream.workers",
    "stream.download",
    "stream.cache",
    "model.checkpoint",
    "model.model_dir",
    "method.fisher.root",
)
"""Keys within them that only say where things are and how they are read: what is there has a name of its own."""

BACKCOMPAT_DEFAULTS = {
    "scenario.delta": None,
    "scenario.imbalance_ratio": None,
    "scenario.mix": False,
    "scenario.rounds": 1,
    "scenario.long_tailed": None,
    "stream.classes": None,
    "stream.subset": None,
    "stream.on_device": False,
    "scenario.part": "all",
    "scenario.share": None,
    "scenario.share_seed": 0,
}
"""Keys younger than results, at the value that those were made with: they are not hashed, so that such are found."""

MOVED_TARGETS = {
    "tta.models.demo.": "tta.demo.",
    "tta.models.": "tta.backbones.",
    "tta.streams.datasets.demo.": "tta.demo.",
    "tta.streams.datasets.imagenet_variants.": "tta.streams.natural.",
    "tta.streams.datasets.source_images.": "tta.streams.clean.",
    "tta.streams.datasets.": "tta.streams.",
}
"""Where what a ``_target_`` names was when results were made: it is hashed under that name. The first prefix counts."""


def fingerprint(config: Mapping[str, Any], weights_id: str, *data: str) -> str:
    """Hash what determines a result, into 10 hexadecimal digits.

    Args:
        config: of the run, as plain containers.
        weights_id: names the weights, whatever file they came from (``Backbone.weights_id``).
        data: names of the images, wherever they are (``Stream.digest``, ``Method.data_digest``); "" for none.
    """
    content = {
        "format": RESULT_FORMAT,
        "weights": weights_id,
        "data": " ".join(filter(None, data)),
        **hashed_groups(config),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def hashed_groups(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the parts of a configuration that determine a result, apart from the content of files."""
    return {group: _without_unhashed(config[group], group) for group in HASHED_GROUPS}


def _without_unhashed(node: Any, name: str) -> Any:
    if isinstance(node, str) and name.endswith("._target_"):
        new = next((prefix for prefix in MOVED_TARGETS if node.startswith(prefix)), "")
        return MOVED_TARGETS.get(new, "") + node.removeprefix(new)
    if not isinstance(node, Mapping):
        return node
    keys = {key: f"{name}.{key}" for key in node}
    return {
        key: _without_unhashed(node[key], full)
        for key, full in keys.items()
        if full not in UNHASHED_KEYS and not (full in BACKCOMPAT_DEFAULTS and BACKCOMPAT_DEFAULTS[full] == node[key])
    }
