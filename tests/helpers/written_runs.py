"""Directories of finished runs, without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Visit = tuple[str, int, int, float]
"""Domain, severity, visit, accuracy."""


def write_run(folder: Path, method: str, seed: int, accuracies: Mapping[str, float], **changes: Any) -> Path:
    """A run of 100 images per domain in two batches; ``changes`` replace parts of its summary or configuration.

    ``lr`` is tent's, ``config`` holds parts of the configuration, ``method_config`` is all of the method's.
    """
    visits = [(name, 5, 1, accuracy) for name, accuracy in accuracies.items()]
    return write_visits(folder, visits, method, seed, **changes)


def write_visits(
    folder: Path, visits: Sequence[Visit], method: str = "tent", seed: int = 0, lr: float = 0.01, **changes: Any
) -> Path:
    """A run with these visits of domains; see ``write_run``."""
    folder.mkdir(parents=True)
    learns = {"objective": {"_target_": "o.EM"}, "optimizer": {"_target_": "o.SGD", "lr": lr}}
    config: dict[str, Any] = {
        "model": {},
        "stream": {"_target_": "x", "batch_size": 50, **changes.pop("stream", {})},
        "scenario": {"_target_": "x", "reset": "domain", "order": "shuffle", **changes.pop("scenario", {})},
        "method": changes.pop("method_config", {"_target_": f"m.{method}", **(learns if method == "tent" else {})}),
        "seed": seed,
        "precision": "fp32",
        **changes.pop("config", {}),
    }
    n = changes.pop("n", 100)
    keys = ("domain", "severity", "visit", "accuracy")
    summary = {
        "accuracy": sum(visit[-1] for visit in visits) / len(visits),
        "images": n * len(visits),
        "seconds": 0.01 * n * len(visits) * (1 if method == "source" else 2),
        "skipped": [],
        "domains": [{**dict(zip(keys, visit, strict=True)), "n": n, "seconds": 1.0} for visit in visits],
        "choices": {
            "method": method,
            "objective": "em",
            "stream": "demo",
            "scenario": "single_domain",
            "model": "demo",
        },
        "weights": "w",
        "normalization": None,
        "data": "d",
        "method_data": None,
        "command": ["/somewhere/tta", "-m", "method=source,tent", "stream.corruptions=[fog,snow]"],
        "date": f"2026-01-0{seed + 1}T12:00:00+00:00",
        "packages": {"torch": "2.11.0"},
        "device": "cpu (2 threads)",
        "config": config,
        **changes,
    }
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = ["step,domain,severity,visit,n,domain_accuracy"]
    lines += [f"{2 * i + k},{d},{s},{v},{n // 2},{a}" for i, (d, s, v, a) in enumerate(visits) for k in (0, 1)]
    (folder / "batches.csv").write_text("\n".join(lines) + "\n")
    lines = ["domain,severity,visit,class,labels,predictions,correct"]
    lines += [f"{d},{s},{v},{c},{n // 2},{n // 2 + (5, -5)[c]},1" for d, s, v, _ in visits for c in (0, 1)]
    (folder / "classes.csv").write_text("\n".join(lines) + "\n")
    return folder
