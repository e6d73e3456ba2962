"""Finished runs, read from their ``summary.json``, and what tells them apart."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from tta.runs.fingerprint import hashed_groups

FIRST_FILES = ("summary.json", "batches.csv", "config.yaml")
"""A folder with one of them is a run's; without the first it is unfinished."""

LABELLED = "‡"
"""Marks what owes something to labels of the test stream."""


@dataclass(eq=False)
class Run:
    """A finished run, as its ``summary.json`` tells it."""

    path: Path
    summary: dict[str, Any]
    detail: str = ""  # what tells it from others of the same method, objective and learning rate

    @cached_property
    def hashed_groups(self) -> dict[str, Any]:
        """What in its configuration determines its result."""
        return hashed_groups(self.summary["config"])

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What two runs must share to be in one table, each under the name that a person knows it by."""
        summary = self.summary
        stream, scenario = (dict(self.hashed_groups[part]) for part in ("stream", "scenario"))
        visits = [(d["domain"], d["severity"], d.get("visit", 1)) for d in summary["domains"]]
        for known in ("corruptions", "severity", "limit"):  # domains and images tell them; a limit is a rule, no draw
            stream.pop(known, None)
        return {
            "weights": summary["weights"],
            "normalization": summary["normalization"],
            "data": summary["data"],
            "domains": visits,
            "images per domain": [d["n"] for d in summary["domains"]],
            "batch size": stream.pop("batch_size", None),
            "reset": scenario.pop("reset", None),
            "scenario": scenario,
            "stream": stream,
        }

    @cached_property
    def benchmark(self) -> tuple[str, ...]:
        """``protocol`` as text, to tell it from others."""
        return tuple(json.dumps(part, sort_keys=True) for part in self.protocol.values())

    @property
    def seed(self) -> int:
        """Seed of the order of the stream, and of whatever the method draws."""
        return self.summary["config"]["seed"]

    @property
    def precision(self) -> str:
        """Number format of the forward and backward passes."""
        return self.summary["config"]["precision"]

    @property
    def name(self) -> str:
        """Option taken of the group ``method``, or the class."""
        return self.summary["choices"].get("method") or self.summary["config"]["method"]["_target_"].rpartition(".")[2]

    @property
    def uses_labels(self) -> bool:
        """Whether options were chosen with labels of the test stream, as ``tta-search`` does."""
        return bool(self.summary["config"].get("uses_labels"))

    @cached_property
    def method(self) -> str:
        """Method, and objective where it has one; ‡ if options were chosen with labels."""
        name, objective = self.name, self.summary["choices"].get("objective")
        if "objective" in self.summary["config"]["method"] and objective and objective != name:
            name += f" + {objective}"
        if self.precision != "fp32":
            name += f" {self.precision}"
        return name + LABELLED * self.uses_labels

    @property
    def lr(self) -> float | None:
        """Learning rate, if the method has one."""
        return self.summary["config"]["method"].get("optimizer", {}).get("lr")

    @property
    def label(self) -> str:
        """Method, objective and learning rate: runs with the same label are seeds of one row."""
        return (self.method if self.lr is None else f"{self.method} (lr {self.lr:g})") + self.detail

    @property
    def title(self) -> str:
        """Stream and its subset, scenario with its options, and model, for a person."""
        stream, scenario, model = (
            self.summary["choices"].get(group, "custom") for group in ("stream", "scenario", "model")
        )
        if subset := self.summary.get("subset"):  # older results have none
            stream += f" ({subset})"
        options = self.hashed_groups["scenario"]
        words = ", ".join(f"{key}={_word(value)}" for key, value in options.items() if key != "_target_")
        return f"{stream}, {scenario}{f' ({words})' if words else ''}, {model}"

    @cached_property
    def accuracies(self) -> dict[str, float]:
        """See ``accuracies``."""
        return accuracies(self.summary)


@dataclass
class Found:
    """What is in some folders."""

    runs: list[Run] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)  # the reason of each


def find_runs(places: Iterable[Path]) -> list[Run]:
    """Read every finished run at or below these folders; see ``find``."""
    return find(places).runs


def find(places: Iterable[Path]) -> Found:
    """Look at every run at or below these folders.

    Raises:
        FileNotFoundError: if a folder is missing, or none has a finished run.
    """
    places, found, seen = list(places), Found(), set()
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"there is no folder {place}")
        for path in _run_folders(place):
            if (real := path.resolve()) not in seen:  # folders may be given twice, or one within another
                seen.add(real)
                _read(path, found)
    if not found.runs:
        raise FileNotFoundError(f"no finished run (a folder with summary.json) in {_words(places)}{_reason(found)}")
    _tell_apart(found.runs)
    return found


def _run_folders(place: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(place):
        folders.sort()
        if any(name in files for name in FIRST_FILES):
            folders.clear()  # there are no runs within a run
            yield Path(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _read(path: Path, found: Found) -> None:
    file = path / "summary.json"
    if not file.is_file():
        found.unfinished.append(path)
        return
    try:
        run = Run(path, json.loads(file.read_bytes()))
    except OSError as error:
        found.unreadable[file] = error.strerror or str(error)
        return
    except ValueError as error:
        found.unreadable[file] = f"not JSON: {error}"
        return
    try:
        # What every table needs, now that the file can be named.
        _ = run.benchmark, run.label, run.seed, run.title, run.accuracies, run.summary["packages"]["torch"]
        _ = [run.summary[key] for key in ("command", "date", "device", "seconds", "images")], run.summary["domains"][0]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        found.unreadable[file] = f"not a summary that tta wrote: {error!r}"
    else:
        found.runs.append(run)


def _reason(found: Found) -> str:
    parts = []
    if found.unfinished:
        parts.append(f"{len(found.unfinished)} unfinished: {_words(found.unfinished)}")
    parts += [f"{file} cannot be read ({reason})" for file, reason in found.unreadable.items()]
    return f"; {'; '.join(parts)}" if parts else ""


def _words(paths: Sequence[Path], most: int = 3) -> str:
    return ", ".join(map(str, paths[:most])) + (f" and {len(paths) - most} more" if len(paths) > most else "")


def _tell_apart(runs: Sequence[Run]) -> None:
    """Give runs whose methods differ in more than the label says the keys in which they do, e.g. a momentum."""
    same: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        same.setdefault((run.benchmark, run.label), []).append(run)
    for group in same.values():
        options = [dict(_options(run)) for run in group]
        keys = [key for key in dict.fromkeys(key for found in options for key in found) if _tells_apart(key, options)]
        for run, found in zip(group, options, strict=True):
            run.detail = "".join(f" {_shown(key, found[key])}" for key in sorted(keys) if key in found)


def _tells_apart(key: str, options: Sequence[Mapping[str, Any]]) -> bool:
    """Whether runs differ in this option, and not only in whether the class of its part has it."""
    values = {str(found[key]) for found in options if key in found}
    if len(values) > 1:
        return True
    target = f"{key.rpartition('.')[0]}._target_".removeprefix(".")
    same_class = target == key or len({found.get(target) for found in options}) == 1
    return same_class and any(key not in found for found in options)


def _shown(key: str, value: Any) -> str:
    """An option as in ``optimizer=Adam`` or ``optimizer.momentum=0.9``."""
    if key.endswith("._target_"):
        return f"{key.removesuffix('._target_')}={str(value).rpartition('.')[2]}"
    return f"{key}={_word(value)}"


def _options(run: Run) -> Iterator[tuple[str, Any]]:
    """Options of a run's method, but for the run's own seed, which tells no methods apart."""
    yield from (option for option in _flat(run.hashed_groups["method"]) if option != ("seed", run.seed))
    yield "data", run.summary.get("method_data")


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _word(value: Any) -> str:
    """Write a value as one writes it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def accuracies(summary: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies of a run in per cent: of each domain by its name, and the ``mean``.

    A domain that comes more than once has the mean over its severities and visits. ``severity 1`` ..., if a domain has
    several, are means over domains; ``visit 1`` ..., if all come equally often, over what comes in each round.
    """
    visits = summary["domains"]
    conditions = Counter((visit["domain"], visit["severity"]) for visit in visits)
    parts: dict[str, list[float]] = {}
    for visit in visits:
        parts.setdefault(visit["domain"], []).append(100 * visit["accuracy"])
    told = ["severity"] if len(conditions) > len(parts) else []
    if len(set(conditions.values())) == 1 and len(visits) > len(conditions):
        told.append("visit")
    for key in told:
        for visit in sorted(visits, key=lambda visit: visit[key]):
            parts.setdefault(f"{key} {visit[key]}", []).append(100 * visit["accuracy"])
    return {name: fmean(values) for name, values in parts.items()} | {"mean": 100 * summary["accuracy"]}
