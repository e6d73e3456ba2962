"""Runs to rows: seeds of the same method together, tables of what can be compared, and warnings of what cannot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tta.compare.published import Published
from tta.compare.reading import LABELLED, Run
from tta.compare.significance import Difference, Test, differences

BASELINES = ("bn_adapt", "source")
"""Taken as the baseline when none is named: the first that is there."""

NAMED = 6
"""Things of a kind that a sentence names."""


@dataclass(eq=False)
class Row:
    """The seeds of one method, objective, learning rate and whatever else tells it from the others."""

    runs: list[Run]  # one for each seed, by seed
    chosen_of: int = 0  # how many learning rates it was chosen from, on the test stream

    @property
    def method(self) -> str:
        """Without the learning rate."""
        return self.runs[0].method + self.runs[0].detail

    @property
    def lr(self) -> float | None:
        """Learning rate, if it has one."""
        return self.runs[0].lr

    @property
    def label(self) -> str:
        """With the learning rate, and † if that was chosen on the test stream."""
        return self.runs[0].label + ("†" if self.chosen_of else "")

    @property
    def seeds(self) -> list[int]:
        """Those of its runs."""
        return [run.seed for run in self.runs]

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Accuracies in per cent, a value for each seed (S,), of each domain (and severity, visit) and their mean."""
        return {name: np.array([run.accuracies[name] for run in self.runs]) for name in self.runs[0].accuracies}

    def mean(self, column: str = "mean") -> float:
        """Mean over seeds, in per cent."""
        return float(self.values[column].mean())

    def std(self, column: str = "mean") -> float | None:
        """Sample standard deviation over seeds, in per cent; of one seed there is none."""
        return float(self.values[column].std(ddof=1)) if len(self.runs) > 1 else None

    @cached_property
    def seconds(self) -> float:
        """Seconds for each image: forward, adaptation and everything else, on the device that the runs were on.

        The median of the runs: the first of a process takes longer, until it is warm.
        """
        return float(np.median([run.summary["seconds"] / run.summary["images"] for run in self.runs]))


@dataclass(eq=False)
class Table:
    """Rows that can be compared: the same weights, images, order, batches and resets."""

    rows: list[Row]
    baseline: Row | None = None
    differences: dict[str, Difference] = field(default_factory=dict)  # by label
    test: Test = "wilcoxon"
    warnings: list[str] = field(default_factory=list)
    every_rate: list[Row] = field(default_factory=list)  # also those that were not chosen
    twice: list[str] = field(default_factory=list)  # runs there twice, of which the later one counts
    published: Published | None = None  # to lay the rows beside

    @property
    def runs(self) -> list[Run]:
        """Those of the rows."""
        return [run for row in self.rows for run in row.runs]

    @cached_property
    def domains(self) -> list[str]:
        """Names of the domains, in the order of the stream."""
        return list(dict.fromkeys(visit["domain"] for visit in self.rows[0].runs[0].summary["domains"]))

    @cached_property
    def columns(self) -> list[str]:
        """Names of domains, then of severities and visits, without the mean."""
        return [name for name in self.rows[0].values if name != "mean"]

    @property
    def seeds(self) -> list[int]:
        """Those that any row has."""
        return sorted({seed for row in self.rows for seed in row.seeds})

    @property
    def rates(self) -> dict[str, list[Row]]:
        """Rows of each method by learning rate, as they were before any was chosen."""
        found: dict[str, list[Row]] = {}
        for row in self.every_rate:
            found.setdefault(row.method, []).append(row)
        return found

    @property
    def sweeps_rates(self) -> bool:
        """Whether a method has several learning rates."""
        return any(len(rows) > 1 for rows in self.rates.values())


def tables(
    runs: Iterable[Run],
    baseline: str | None = None,
    best_lr: bool = False,
    test: Test = "wilcoxon",
    published: Published | None = None,
) -> list[Table]:
    """Put runs that can be compared into a table each, the largest first.

    Args:
        runs: as ``find_runs`` gives them.
        baseline: label or method that the others are compared with; by default ``bn_adapt``, else ``source``.
        best_lr: keep of each method the learning rate with the best mean.
        test: of the differences to the baseline.
        published: to lay the rows beside.

    Raises:
        ValueError: if no row, or more than one, is the baseline that was named.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.benchmark, []).append(run)
    found = [_table(group, best_lr) for group in sorted(groups.values(), key=len, reverse=True)]
    _choose_baselines(found, baseline)
    for table in found:
        table.test, table.published = test, published
        if table.baseline:
            others = {row.label: row for row in table.rows if row is not table.baseline}
            pairs = {label: _pairs(row, table.baseline, table.domains) for label, row in others.items()}
            table.differences = differences(pairs, test)
        table.warnings = [*_warnings(table), *_without_pairs(table), *_unlike_published(table)]
    return found


def _table(runs: Sequence[Run], best_lr: bool) -> Table:
    by_label: dict[str, dict[int, Run]] = {}
    twice: list[str] = []
    for run in sorted(runs, key=lambda run: run.summary["date"]):
        seeds = by_label.setdefault(run.label, {})
        if run.seed in seeds:
            twice.append(f"{run.label} seed {run.seed}")
        seeds[run.seed] = run
    rows = _in_order([Row([seeds[seed] for seed in sorted(seeds)]) for seeds in by_label.values()])
    return Table(_best_rates(rows) if best_lr else rows, every_rate=rows, twice=twice)


def _in_order(rows: list[Row]) -> list[Row]:
    """Methods by the best of their means, the worst first; of a method, the smallest learning rate first."""
    best: dict[str, float] = {}
    for row in rows:
        best[row.method] = max(row.mean(), best.get(row.method, 0))
    return sorted(rows, key=lambda row: (best[row.method], row.method, row.lr or 0))


def _best_rates(rows: Sequence[Row]) -> list[Row]:
    """Of each method the row with the best mean, among those with the most seeds."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    chosen = []
    for group in methods.values():
        best = max(group, key=lambda row: (len(row.runs), row.mean()))
        chosen.append(Row(best.runs, chosen_of=len(group) if len(group) > 1 else 0))
    return chosen


def _choose_baselines(found: Sequence[Table], name: str | None) -> None:
    if name is None:
        for table in found:
            matches = (row for wanted in BASELINES for row in table.rows if row.runs[0].name == wanted)
            table.baseline = next(matches, None)
        return
    known = list(dict.fromkeys(row.label for table in found for row in table.rows))
    for table in found:
        exact = [row for row in table.rows if _unmarked(row.label) == _unmarked(name)]
        matches_ = exact or [row for row in table.rows if name in (_unmarked(row.method), row.runs[0].name)]
        if len(matches_) > 1:
            raise ValueError(
                f"--baseline {name!r} could be any of {named([repr(row.label) for row in matches_])}: name one of them"
            )
        table.baseline = matches_[0] if matches_ else None
    if not any(table.baseline for table in found):
        raise ValueError(f"--baseline {name!r} is not among the rows; there are {named(map(repr, known), 40)}")


def _unmarked(label: str) -> str:
    return label.translate(dict.fromkeys(map(ord, f"†{LABELLED}")))


def _pairs(row: Row, baseline: Row, domains: Sequence[str]) -> np.ndarray:
    """Accuracy less that of the baseline, in points, for each seed that both have and each domain (S, D)."""
    common = [seed for seed in row.seeds if seed in baseline.seeds]
    ours, theirs = ([of.seeds.index(seed) for seed in common] for of in (row, baseline))
    columns = [row.values[name][ours] - baseline.values[name][theirs] for name in domains]
    return np.stack(columns, axis=1)


def _warnings(table: Table) -> list[str]:
    """What in this table keeps rows from being compared."""
    found = []
    if table.twice:
        found.append(f"there twice, the later run counts: {named(table.twice)}")
    seeds = table.seeds
    if few := [
        f"{row.label} ({', '.join(str(s) for s in seeds if s not in row.seeds)})"
        for row in table.rows
        if len(row.seeds) < len(seeds)
    ]:
        found.append(f"incomplete, seeds missing: {named(few)}")
    if len(precisions := {run.precision for run in table.runs}) > 1:
        found.append(f"rows differ in precision: {', '.join(sorted(precisions))}")
    if len(versions := {str(run.summary["packages"].get("torch")) for run in table.runs}) > 1:
        found.append(f"runs were made with torch {named(sorted(versions))}")
    if skipped := [run.label for run in table.runs if run.summary.get("skipped")]:
        found.append(f"images that could not be read were left out: {named(dict.fromkeys(skipped))}")
    if len(devices := {run.summary["device"] for run in table.runs}) > 1:
        found.append(f"seconds cannot be compared, runs were on {named(sorted(devices))}")
    return found


def _without_pairs(table: Table) -> list[str]:
    if table.baseline is None:
        return (
            ["no baseline here, so no differences: --baseline chooses one of the rows"] if len(table.rows) > 1 else []
        )
    baseline, found = table.baseline, []
    common = {row.label: set(row.seeds) & set(baseline.seeds) for row in table.rows}
    if alone := [label for label, seeds in common.items() if not seeds]:
        found.append(f"no seed in common with {baseline.label}: {named(alone)}")
    if fewer := [row.label for row in table.rows if 0 < len(common[row.label]) < len(row.seeds)]:
        found.append(f"Δ is over the seeds that {baseline.label} has too, not over all of {named(fewer)}")
    return found


def _unlike_published(table: Table) -> list[str]:
    if table.published is None or not (departures := table.published.departures(table.rows)):
        return []
    return [
        f"not the protocol of {table.published.source}, so that differences to it mean nothing: {'; '.join(departures)}"
    ]


def named(things: Iterable[str], most: int = NAMED) -> str:
    """Name the first things, and count the others."""
    found = list(things)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def told_apart(found: Sequence[Table]) -> list[str]:
    """Say, a sentence for each table, in what the tables differ, so that their rows cannot be compared."""
    if len(found) < 2:
        return []
    protocols = [table.rows[0].runs[0].protocol for table in found]
    keys = [key for key in protocols[0] if len({json.dumps(p[key], sort_keys=True) for p in protocols}) > 1]
    values = [[f"{key} {_short(key, protocol, protocols)}" for key in keys] for protocol in protocols]
    return [f"table {number}: {'; '.join(parts)}" for number, parts in enumerate(values, 1)]


def _short(key: str, protocol: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    value = protocol[key]
    if key == "domains":
        names = list(dict.fromkeys((domain, severity) for domain, severity, _ in value))
        return f"{len(value)} ({named(f'{domain} {severity}' for domain, severity in names)})"
    if key == "images per domain":
        return " to ".join(str(n) for n in sorted({min(value), max(value)}))
    if isinstance(value, dict):
        differing = [k for k in value if any(o[key] is None or o[key].get(k) != value[k] for o in others)]
        return " ".join(f"{k}={value[k]}" for k in differing) or "without options"
    return str(value)
