"""Published accuracies, to lay runs beside: read from a file, and matched with rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tta.compare.reading import LABELLED, Run

if TYPE_CHECKING:
    from tta.compare.rows import Row

BUILT_IN = Path(__file__).with_name("published.yaml")
"""What is known under a name alone."""

SET_KEYS = ("source", "note", "measure", "domains", "protocol", "rows")
ROW_KEYS = ("mean", "std", "domains")
PROTOCOL_KEYS = ("weights", "normalization", "images", "severity", "batch_size", "reset", "order", "options")
MEASURES = ("accuracy", "error")

ROUNDING = 0.1
"""Points that a printed mean may differ from the mean of printed figures: half of a last place, twice."""


@dataclass(frozen=True)
class Figures:
    """A published row, in per cent."""

    mean: float
    std: float | None = None
    domains: Mapping[str, float] = field(default_factory=dict)  # those that are known, maybe none

    def of(self, column: str) -> float | None:
        """The figure of a domain, or of the ``mean``."""
        return self.mean if column == "mean" else self.domains.get(column)


@dataclass(frozen=True)
class Published:
    """Rows of a published table.

    Args:
        name: that it is chosen by.
        source: where it was published.
        note: what a reader must know of it.
        domains: that its means are over.
        protocol: what a run must share, as far as it is known.
        rows: by the label that ``tta-compare`` gives, with or without the learning rate.
    """

    name: str
    source: str
    note: str
    domains: Sequence[str]
    protocol: Mapping[str, Any]
    rows: Mapping[str, Figures]

    def match(self, row: Row) -> str | None:
        """Label of the row that corresponds to one of ours: the same learning rate, or one that has none."""
        written = (row.runs[0].label.removesuffix(row.runs[0].detail), row.runs[0].method)
        labels = [label.replace(LABELLED, "") for label in written]  # the note of a table says what its figures owe
        return next((label for label in labels if label in self.rows), None)

    def find(self, row: Row) -> Figures | None:
        """Figures of the row that corresponds to one of ours."""
        label = self.match(row)
        return None if label is None else self.rows[label]

    def departures(self, rows: Sequence[Row]) -> list[str]:
        """Say in what rows (of one table) are not of the published protocol, with what that has in brackets."""
        found = [
            f"{name} {_short(ours)} ({_short(theirs)} there)"
            for name, ours, theirs in self._compared(rows[0].runs[0])
            if ours != theirs
        ]
        for key, theirs in self.protocol.get("options", {}).items():
            values = {_short(_option(row.runs[0], key)): None for row in rows if self.match(row)}
            values.pop("None", None)  # methods that have no such option
            found += [f"{key} {value} ({_short(theirs)} there)" for value in values if value != _short(theirs)]
        return found

    def _compared(self, run: Run) -> Iterator[tuple[str, Any, Any]]:
        """Name, ours and theirs of what can be compared."""
        protocol, visits = run.protocol, run.summary["domains"]
        ours = {
            "weights": ("weights", protocol["weights"]),
            "normalization": ("normalisation", protocol["normalization"]),
            "images": ("images per domain", _one([visit["n"] for visit in visits])),
            "severity": ("severity", _one([visit["severity"] for visit in visits])),
            "batch_size": ("batch size", protocol["batch size"]),
            "reset": ("reset", protocol["reset"]),
            "order": ("order", protocol["scenario"].get("order")),
        }
        for key, (name, value) in ours.items():
            if key in self.protocol:
                yield name, value, self.protocol[key]
        names = list(dict.fromkeys(visit["domain"] for visit in visits))
        if len(names) != len(self.domains):
            yield "number of domains", len(names), len(self.domains)
        else:
            yield "domains", ", ".join(names), ", ".join(self.domains)


def _one(values: Sequence[Any]) -> Any:
    """The value, if all are the same, else the smallest and the largest."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _option(run: Run, key: str) -> Any:
    node: Any = run.hashed_groups["method"]
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_published(words: str) -> Published:
    """Read a published table.

    Args:
        words: its name in ``published.yaml`` of this package, or ``<file>:<name>`` for one in a file of the same form.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is none of published figures, or has no table of that name; the message has those there.
    """
    place, _, name = words.rpartition(":")
    if not place and name.endswith((".yaml", ".yml")):
        place, name = name, ""
    file = Path(place).expanduser() if place else BUILT_IN
    content = _content(file)
    if name not in content:
        where = f" in {file}" if place else ""
        known = ", ".join(content) or "none"
        raise ValueError(f"--published: there is no table {name!r}{where}; there are {known}")
    try:
        return _published(name, content[name])
    except ValueError as error:
        raise ValueError(f"--published: {file}, {name}: {error}") from None


def names(file: Path = BUILT_IN) -> list[str]:
    """Names of the tables in a file."""
    return list(_content(file))


def _content(file: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    if not file.is_file():
        raise FileNotFoundError(f"--published: there is no file {file}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))  # unlike YAML itself, it refuses a key that comes twice
    except Exception as error:  # of YAML, of the encoding, of what OmegaConf takes
        raise ValueError(f"--published: {file} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--published: {file} must have tables by their names, got a {type(content).__name__}")
    return {str(name): table for name, table in content.items()}


def _published(name: str, table: Any) -> Published:
    _check_keys("a table", table, SET_KEYS, ("source", "domains", "rows"))
    protocol, rows = table.get("protocol") or {}, table["rows"]
    _check_keys("protocol", protocol, PROTOCOL_KEYS)
    domains = table["domains"]
    if not isinstance(domains, list) or len(set(domains)) != len(domains) or not domains:
        raise ValueError(f"domains must be a list of names, each once; got {domains!r}")
    if (measure := table.get("measure", "accuracy")) not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}; got {measure!r}")
    if not isinstance(rows, dict) or not rows:
        raise ValueError("rows must have figures by labels, such as `tent + em: {mean: 40.0}`")
    figures = {str(label): _figures(f"{label!r}", row, domains, measure == "error") for label, row in rows.items()}
    return Published(name, str(table["source"]), str(table.get("note", "")).rstrip(". "), domains, protocol, figures)


def _figures(label: str, row: Any, domains: Sequence[str], errors: bool) -> Figures:
    _check_keys(label, row, ROW_KEYS, ("mean",))
    given = row.get("domains", {})
    if isinstance(given, list):
        if len(given) != len(domains):
            raise ValueError(f"{label} has {len(given)} figures for {len(domains)} domains")
        given = dict(zip(domains, given, strict=True))
    if unknown := [name for name in given if name not in domains]:
        raise ValueError(f"{label} has figures for {', '.join(unknown)}, which are none of the domains")
    mean = _percentage(label, row["mean"], errors)
    found = {name: _percentage(f"{label}, {name}", value, errors) for name, value in given.items()}
    if len(found) == len(domains) and abs(fmean(found.values()) - mean) > ROUNDING + 1e-9:
        raise ValueError(
            f"{label} has a mean of {row['mean']}, that of its {len(domains)} domains is "
            f"{fmean(given.values()):.2f}: one of the figures is not what was published"
        )
    std = row.get("std")
    return Figures(mean, None if std is None else _percentage(f"{label}, std", std, False), found)


def _percentage(label: str, value: Any, errors: bool) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 100:
        raise ValueError(f"{label} must be a number from 0 to 100, per cent; got {value!r}")
    return round(100 - value, 6) if errors else float(value)


def _check_keys(what: str, node: Any, known: Sequence[str], needed: Sequence[str] = ()) -> None:
    if not isinstance(node, dict):
        raise ValueError(f"{what} must have keys ({', '.join(known)}); got {node!r}")
    if unknown := [str(key) for key in node if key not in known]:
        raise ValueError(f"{what} has unknown keys ({', '.join(unknown)}); it takes {', '.join(known)}")
    if missing := [key for key in needed if key not in node]:
        raise ValueError(f"{what} needs {', '.join(missing)}")
