"""The command ``tta-compare``: finished runs to tables and figures."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tta.figures import plot_learning_rates, plot_online_accuracy
from tta.runs import determinants

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 6
"""Labels that fit beside each other in a table."""


@dataclass
class Run:
    """A finished run, as its ``summary.json`` tells it."""

    path: Path
    summary: dict[str, Any]
    detail: str = ""  # what tells it from others of the same method, objective and learning rate

    @property
    def benchmark(self) -> tuple[str, ...]:
        """What two runs must share to be in one table: weights, images, order, batches, reset."""
        summary = self.summary
        protocol = determinants(summary["config"])
        images = [(d["domain"], d["severity"], d["n"]) for d in summary["domains"]]
        parts = (summary["weights"], summary["normalization"], summary["data"], images)
        return tuple(json.dumps(part, sort_keys=True) for part in (*parts, protocol["stream"], protocol["scenario"]))

    @property
    def method(self) -> str:
        """Method, and objective where it has one."""
        choices, method = self.summary["choices"], self.summary["config"]["method"]
        name = choices.get("method", method["_target_"])
        objective = choices.get("objective")
        if "objective" in method and objective and objective != name:
            name += f" + {objective}"
        if self.summary["config"]["precision"] != "fp32":
            name += f" {self.summary['config']['precision']}"
        return name

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
        options = determinants(self.summary["config"])["scenario"]
        words = ", ".join(f"{key}={_word(value)}" for key, value in options.items() if key != "_target_")
        return f"{stream}, {scenario}{f' ({words})' if words else ''}, {model}"

    def batches(self) -> pd.DataFrame:
        """Read ``batches.csv``."""
        import pandas as pd

        return pd.read_csv(self.path / "batches.csv")


def _word(value: Any) -> str:
    """Write a value as one writes it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def find_runs(places: Iterable[Path]) -> list[Run]:
    """Read every finished run at or below these folders.

    Raises:
        FileNotFoundError: if a folder is missing, or none has a finished run.
    """
    runs: list[Run] = []
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"there is no folder {place}")
        runs.extend(Run(file.parent, json.loads(file.read_text())) for file in sorted(place.rglob("summary.json")))
    if not runs:
        raise FileNotFoundError(f"no finished run (a folder with summary.json) in {', '.join(map(str, places))}")
    _tell_apart(runs)
    return runs


def _tell_apart(runs: Sequence[Run]) -> None:
    """Give runs whose methods differ in more than the label says the keys in which they do, e.g. a momentum."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(run.label, []).append(run)
    for group in same.values():
        options = [dict(_options(run)) for run in group]
        keys = sorted(key for key in set().union(*options) if len({str(o.get(key)) for o in options}) > 1)
        for run, found in zip(group, options, strict=True):
            run.detail = "".join(f" {key}={found.get(key)}" for key in keys)


def _options(run: Run) -> Iterator[tuple[str, Any]]:
    """Options of a run's method, but for the run's own seed, which tells no methods apart."""
    config = run.summary["config"]
    return (option for option in _flat(config["method"]) if option != ("seed", config["seed"]))


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """Accuracies in per cent: a row for each method (worst mean first), columns as ``accuracies`` has them, ``std``.

    Runs of one label are seeds of one row; ``std`` is the sample standard deviation of their means.
    """
    import pandas as pd

    records = [{"method": run.label, "seed": run.summary["config"]["seed"], **accuracies(run.summary)} for run in runs]
    frame = pd.DataFrame(records).drop_duplicates(["method", "seed"], keep="last")
    groups = frame.groupby("method", sort=False)
    result = groups.mean().drop(columns="seed")
    result["std"] = groups["mean"].std()
    result["seeds"] = groups.size()
    return result.sort_values("mean", kind="stable")


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``tta-compare``."""
    parser = argparse.ArgumentParser(prog="tta-compare", description="Compare finished runs: a table and a figure.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders that hold runs, at any depth")
    parser.add_argument("--out", type=Path, help="where the files go; default: the first folder of runs")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.runs)
        out: Path = options.out or options.runs[0]
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"tta-compare: error: {error}") from None
    benchmarks: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        benchmarks.setdefault(run.benchmark, []).append(run)
    for number, group in enumerate(benchmarks.values()):
        stem = "comparison" if len(benchmarks) == 1 else f"comparison-{number + 1}"
        _report(group, out / stem)


def _report(runs: Sequence[Run], stem: Path) -> None:
    frame = table(runs)
    _print(frame, runs)
    files = {kind: stem.with_suffix(f".{kind}") for kind in ("md", "csv", "png")}
    files["md"].write_text(_markdown(frame, runs))
    frame.to_csv(files["csv"], float_format="%.4f")
    plot_online_accuracy(runs, frame.index, files["png"])
    if len({run.lr for run in runs} - {None}) > 1:
        files["lr"] = stem.with_name(f"{stem.name}-lr.png")
        plot_learning_rates(_rates(runs), frame, files["lr"])
    print("written: " + ", ".join(map(str, files.values())))


def _heading(run: Run) -> str:
    severities = sorted({domain["severity"] for domain in run.summary["domains"]})
    images = sorted({domain["n"] for domain in run.summary["domains"]})
    severity = f"severity {', '.join(map(str, severities))}, " if severities != [0] else ""
    own, all_of_them = (run.summary.get(key) for key in ("classes", "classes_of_the_backbone"))
    classes = f"{own} of {all_of_them} classes, " if own != all_of_them else ""
    return (
        f"{run.title}: online accuracy in per cent; {severity}{classes}"
        f"{' to '.join(str(n) for n in sorted({images[0], images[-1]}))} images per domain, "
        f"batch size {run.summary['config']['stream'].get('batch_size')}, weights {run.summary['weights']}"
    )


def _origin(runs: Sequence[Run]) -> str:
    """Say which commands gave the runs, when, and on what."""

    def different(values: Iterable[str]) -> str:
        found = list(dict.fromkeys(values))
        return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")

    commands = different(f"`{shlex.join(['tta', *run.summary['command'][1:]])}`" for run in runs)
    dates = different(run.summary["date"][:10] for run in sorted(runs, key=lambda run: run.summary["date"]))
    versions = different(f"torch {run.summary['packages']['torch']}" for run in runs)
    return f"{commands}; {dates}; {versions}; {different(run.summary['device'] for run in runs)}"


def _cells(frame: pd.DataFrame, name: str, bold: tuple[str, str]) -> list[str]:
    """Text of a column of the table, a cell for each label, the best in bold.

    Domains have one decimal, the mean two, and its deviation where there are several seeds.
    """
    values = frame[name].round(2 if name == "mean" else 1)
    cells = [f"{value:.{2 if name == 'mean' else 1}f}" for value in values]
    if name == "mean":
        spread = zip(cells, frame["std"], frame["seeds"], strict=True)
        cells = [f"{cell} ±{std:.2f}" if seeds > 1 else cell for cell, std, seeds in spread]
    best = values == values.max()
    return [f"{bold[0]}{cell}{bold[1]}" if top else cell for cell, top in zip(cells, best, strict=True)]


def _view(frame: pd.DataFrame, bold: tuple[str, str]) -> list[list[str]]:
    """Text of the table, its header first: a row for each domain, as their names are three times as wide as figures.

    More labels than fit beside each other are a row each, with the mean alone.
    """
    if len(frame) > SHOWN:
        rows = zip(frame.index, _cells(frame, "mean", bold), strict=True)
        return [["", "mean"], *([str(label), cell] for label, cell in rows)]
    domains = [str(name) for name in frame.columns if name not in ("mean", "std", "seeds")]
    return [["", *map(str, frame.index)], *([name, *_cells(frame, name, bold)] for name in (*domains, "mean"))]


def _rates(runs: Sequence[Run]) -> dict[str, dict[float | None, str]]:
    """Labels of each method, by learning rate."""
    rates: dict[str, dict[float | None, str]] = {}
    for run in runs:
        rates.setdefault(run.method + run.detail, {})[run.lr] = run.label
    return rates


def _rate_view(frame: pd.DataFrame, runs: Sequence[Run]) -> list[list[str]]:
    """Text of a table of means, its header first: a row for each method, a column for each learning rate."""
    columns = sorted({run.lr for run in runs}, key=lambda rate: -1 if rate is None else rate)
    rows = []
    for method, labels in _rates(runs).items():
        chosen = frame.loc[list(labels.values())]
        cells = dict(zip(labels, _cells(chosen, "mean", ("**", "**") if len(chosen) > 1 else ("", "")), strict=True))
        rows.append([method, *(cells.get(rate, "") for rate in columns)])
    return [["", *("no learning rate" if rate is None else f"{rate:g}" for rate in columns)], *rows]


def _print(frame: pd.DataFrame, runs: Sequence[Run]) -> None:
    from rich.console import Console
    from rich.table import Table

    header, *rows = _view(frame, ("[bold]", "[/bold]"))
    view = Table(title=_heading(runs[0]), title_justify="left", pad_edge=False)
    view.add_column(header[0], no_wrap=True, min_width=max(len(row[0]) for row in rows))
    for label in header[1:]:
        view.add_column(label, justify="right")
    for row in rows:
        view.add_row(*row, end_section=row is rows[-2] and rows[-1][0] == "mean")
    Console().print(view)


def _markdown(frame: pd.DataFrame, runs: Sequence[Run]) -> str:
    by_rate = len(frame) > SHOWN and len({run.lr for run in runs} - {None}) > 1
    header, *rows = _rate_view(frame, runs) if by_rate else _view(frame, ("**", "**"))
    lines = [
        f"{_heading(runs[0])}." + " Means over the domains; the best learning rate of each row in bold." * by_rate,
        "",
        f"| {' | '.join(header)} |",
        "|---|" + "---:|" * len(header[1:]),
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Runs: {_origin(runs)}.",
    ]
    return "\n".join(lines) + "\n"
