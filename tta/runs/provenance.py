"""Where a result comes from: everything a reader needs to trust it and to run it again."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tta.utils.devices import describe_device
from tta.utils.urls import redact

if TYPE_CHECKING:
    import torch

    from tta.methods import Method
    from tta.models import Backbone
    from tta.streams import Scenario, Stream

PACKAGES = ("tta", "torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "torchmetrics", "robustbench")


def provenance(
    command: Sequence[str],
    config: Mapping[str, Any],
    backbone: Backbone,
    stream: Stream,
    scenario: Scenario,
    method: Method,
    device: torch.device,
) -> dict[str, Any]:
    """Return what ``summary.json`` records of where a result comes from, without the logins of URLs.

    Args:
        command: the words that the user typed.
        config: of the run, as plain containers.
        backbone: with its weights.
        stream: the images.
        scenario: their order.
        method: on the device.
        device: that it ran on.
    """
    return {
        "weights": backbone.weights_id,
        "normalization": backbone.normalization,
        "data": stream.digest,
        "subset": stream.subset,
        "classes": backbone.num_classes,
        "classes_of_the_backbone": backbone.num_source_classes,
        "method_data": method.data_digest or None,
        "reset": scenario.reset,
        "device": describe_device(device),
        "compiled": method.compiled,
        **environment(command),
        "config": json.loads(redact(json.dumps(config))),
    }


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Return time, command, commit, versions of packages and platform."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [redact(word) for word in command],
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
    }


def _commit() -> str | None:
    """Commit of this package's checkout, with ``+changes`` where files differ from it; ``None`` for a wheel."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(folder / "__init__.py"))  # a checkout of ours, not one around a venv
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None
