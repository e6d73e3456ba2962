"""A small stream and network for sweeps, and what their runs leave, without what differs from time to time."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

N = 40  # images per domain
TIMES = {"seconds", "date", "command"}


def make_files(root: Path, n: int = N, corruptions: Sequence[str] = ("fog", "snow", "frost")) -> None:
    """Make a data set in the layout of CIFAR-10-C, and a checkpoint of a small network with BatchNorm."""
    (root / "CIFAR-10-C").mkdir()
    rng = np.random.default_rng(0)
    np.save(root / "CIFAR-10-C" / "labels.npy", np.tile(np.arange(n) % 10, 5).astype(np.uint8))
    for name in corruptions:
        np.save(root / "CIFAR-10-C" / f"{name}.npy", rng.integers(0, 256, (5 * n, 32, 32, 3), dtype=np.uint8))
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet", num_classes=10).state_dict(), str(root / "net.safetensors"))


def words(root: Path) -> list[str]:
    """What to give ``tta`` for them."""
    return [
        *("stream=cifar10_c", f"stream.root={root}", "stream.corruptions=[fog,snow,frost]", "stream.batch_size=10"),
        *("model=timm", "model.name=test_efficientnet", f"model.checkpoint={root / 'net.safetensors'}", "device=cpu"),
    ]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(lines)]


def left(runs_dir: Path) -> dict[str, Any]:
    """Content of all files of all runs, by their paths."""
    files = [file for file in runs_dir.glob("[!.]*/**/*") if file.is_file()]
    return {str(file.relative_to(runs_dir)): _content(file) for file in files}


def _content(file: Path) -> Any:
    if file.suffix == ".csv":
        return rows(file)
    text = file.read_text().replace(str(file.parents[1]), "RUNS_DIR")
    return _without_times(json.loads(text)) if file.suffix == ".json" else text


def _without_times(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_times(value) for key, value in node.items() if key not in TIMES}
    return [_without_times(value) for value in node] if isinstance(node, list) else node
