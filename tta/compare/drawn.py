"""What the figures show, whatever draws them: numbers, labels with units, one style for each method."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tta.compare.cells import SHORT
from tta.compare.reading import Run
from tta.compare.rows import BASELINES, Row, Table

if TYPE_CHECKING:
    import pandas as pd

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Of Okabe and Ito's palette, which colour-blind people tell apart."""
GREYS = {"source": "#000000", "bn_adapt": "#7F7F7F"}
DASHES = ("solid", "dashed", "dotted", "dashdot")
MARKERS = ("circle", "square", "triangle", "diamond", "cross")

MOST_SERIES = 12
"""Lines that can be told apart in a figure."""
MOST_POINTS_APART = 24
"""Points that can be told apart: as many as there are styles."""
MOST_NAMES = 40
"""Names that fit above a figure."""
MOST_POINTS = 60
"""Of a curve within a domain."""
LETTERS = 34
"""Of a label in one line of a legend."""
MOST_CLASSES = 20
"""Classes that have a place of their own on an axis."""
FEWEST_TICKS = 4
"""On a logarithmic axis."""
TICKS = (
    (1,),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    *(tuple(np.arange(1, 10, step).round(2).tolist()) for step in (1, 0.5, 0.2, 0.1, 0.05)),
)
"""Multiples of powers of ten at which ticks may be, from coarse to fine; the first only where there are many powers."""


MOST_PLACES = 12
"""Labels that fit beside each other on an x axis."""


@dataclass(frozen=True)
class Style:
    """How a method looks in all figures."""

    color: str
    dash: str = "solid"
    marker: str = "circle"


@dataclass
class Series:
    """A method's part of a figure; accuracies in per cent."""

    label: str
    style: Style
    y: np.ndarray
    x: np.ndarray | list[str] = field(default_factory=list)
    kind: Literal["curve", "line", "bar", "point", "level"] = "line"
    error: np.ndarray | None = None  # of y

    @property
    def lines(self) -> list[str]:
        """The label, in lines that fit beside a figure."""
        return textwrap.wrap(self.label, LETTERS)


@dataclass
class Figure:
    """A figure without its drawing."""

    name: str  # goes into the file's name
    title: str
    xlabel: str
    ylabel: str
    series: list[Series]
    note: str = ""
    log_x: bool = False
    stretches: list[tuple[float, str]] = field(default_factory=list)  # end and name of each part of the x axis
    few_places: bool = False  # the x of all points are few values, which the ticks name if there is room

    @property
    def ticks(self) -> list[float]:
        """Places on a logarithmic x axis: round numbers, so fine that there are some on a short axis too.

        Where there are few places with points, these: 0.0025 would be read off as 0.002.
        """
        x = np.concatenate([np.asarray(series.x, dtype=float) for series in self.series if len(series.x)])
        low, high = 0.9 * x.min(), 1.1 * x.max()
        places = np.unique(x)
        if self.few_places and (np.diff(np.log(places)) > np.log(high / low) / MOST_PLACES).all():
            return places.tolist()
        powers = range(int(np.floor(np.log10(low))), int(np.floor(np.log10(high))) + 1)
        for steps in TICKS[int(high < 1e4 * low) :]:
            ticks = [float(f"{step}e{power}") for power in powers for step in steps]
            within = [tick for tick in ticks if low <= tick <= high]
            if len(within) >= FEWEST_TICKS:
                break
        return within


def styles(tables: Iterable[Table]) -> dict[str, Style]:
    """Give each method of all tables a style; the best get those that differ most, the baselines always the same."""
    best = _best(row for table in tables for row in table.every_rate)
    found = {method: Style(GREYS[method], "dashed") for method in best if method in GREYS}
    others = sorted((method for method in best if method not in found), key=lambda method: -best[method].mean())
    for n, method in enumerate(others):
        dash, marker = DASHES[n // len(COLORS) % len(DASHES)], MARKERS[n % len(MARKERS)]
        found[method] = Style(COLORS[n % len(COLORS)], dash, marker)
    return found


def figures(table: Table, looks: Mapping[str, Style]) -> list[Figure]:
    """Every figure that these runs are good for."""
    rows, note = _drawn(table, MOST_SERIES)
    found = [_online(rows, looks), _by_domain(table, rows, looks), _classes(rows, looks)]
    for figure in found:
        figure.note = note
    found.append(_cost(table, looks))
    if table.sweeps_rates:
        found.append(_learning_rates(table, looks))
    return found


def _best(rows: Iterable[Row]) -> dict[str, Row]:
    """Of each method the row with the best mean."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.method not in best or row.mean() > best[row.method].mean():
            best[row.method] = row
    return best


def _drawn(table: Table, most: int) -> tuple[list[Row], str]:
    """One row of each method, and not more than can be told apart; and what to say about the choice."""
    notes = []
    rows = list(_best(table.rows).values())
    if len(rows) < len(table.rows):
        notes.append("learning rates: of each method the one with the best mean, chosen on the test stream")
    if len(rows) > most:
        kept = [row for row in rows if row is table.baseline or row.runs[0].name in BASELINES][:most]
        others = sorted((row for row in rows if row not in kept), key=lambda row: -row.mean())
        kept += others[: most - len(kept)]
        notes.append(f"{len(kept)} of {len(rows)} methods: the baselines and the best")
        rows = [row for row in rows if row in kept]
    return rows, "; ".join(notes)


def _online(rows: Sequence[Row], looks: Mapping[str, Style]) -> Figure:
    series: list[Series] = []
    stretches: list[tuple[float, str]] = []
    for row in rows:
        curve, places = _curve(row)
        end = curve["n"].cumsum()
        visit = places.ne(places.shift()).any(axis=1).cumsum()
        x, y = [], []
        for _, part in curve.groupby(visit):
            kept = np.unique(np.linspace(0, len(part) - 1, MOST_POINTS).round().astype(int))
            x += [*end[part.index].iloc[kept], np.nan]  # a gap, so that no line crosses from domain to domain
            y += [*(100 * part["domain_accuracy"].iloc[kept]), np.nan]
        series.append(Series(row.label, looks[row.method], np.array(y), np.array(x), "curve"))
        stretches = stretches_of(places, end)
    return Figure(
        "", "Online accuracy along the stream", "images seen", "online accuracy in the domain (%)", series,
        stretches=stretches,
    )  # fmt: skip


def _curve(row: Row) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean over seeds of each batch's figures, and where the batch belongs."""
    import pandas as pd

    batches = pd.concat([_read(run, "batches.csv") for run in row.runs])
    steps = batches.groupby("step", sort=True)
    curve = steps[["n", "domain_accuracy"]].mean()
    places = steps[[key for key in ("domain", "severity", "visit") if key in batches]].first().fillna(0)
    return curve, places


def _read(run: Run, name: str) -> pd.DataFrame:
    import pandas as pd

    path: Path = run.path / name
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is needed for figures and cannot be read ({error}); tables are made without --figures and --html"
        ) from error


def stretches_of(places: pd.DataFrame, end: pd.Series) -> list[tuple[float, str]]:
    """Name the stretches of a stream, each with its last image: its domains or, where they are too many, its rounds."""
    changes = int(places["domain"].ne(places["domain"].shift()).sum())
    key = "visit" if changes > MOST_NAMES and "visit" in places else "domain"
    number = places[key].ne(places[key].shift()).cumsum()
    return [
        (float(end[part.index[-1]]), f"{'' if key == 'domain' else 'visit '}{part[key].iloc[0]}")
        for _, part in places.groupby(number)
    ]


def _by_domain(table: Table, rows: Sequence[Row], looks: Mapping[str, Style]) -> Figure:
    names = [*table.columns, "mean"]
    heads = [SHORT.get(name, name) for name in names]
    series = []
    for row in rows:
        error = np.array([row.std(name) for name in names], dtype=float) if len(row.runs) > 1 else None
        means = np.array([row.mean(name) for name in names])
        series.append(Series(row.label, looks[row.method], means, heads, "bar", error))
    seeds = any(one.error is not None for one in series)
    ylabel = f"accuracy (%){', ± deviation over seeds' if seeds else ''}"
    return Figure("domains", "Accuracy by domain", "domain", ylabel, series)


def _classes(rows: Sequence[Row], looks: Mapping[str, Style]) -> Figure:
    """Predicted classes against the labels: few classes by their number, many by their rank."""
    import pandas as pd

    shares: list[tuple[Row, pd.DataFrame]] = []
    for row in rows:
        counts = pd.concat([_read(run, "classes.csv") for run in row.runs])
        sums = counts.groupby("class")[["labels", "predictions"]].sum()
        shares.append((row, 100 * sums / sums["labels"].sum()))
    few = len(shares[0][1]) <= MOST_CLASSES
    kind: Literal["bar", "line", "curve"] = "bar" if few else "curve"

    def one(label: str, style: Style, values: pd.Series, kind: Literal["bar", "line", "curve"]) -> Series:
        ordered = values if few else values.sort_values(ascending=False)
        x = [str(name) for name in values.index] if few else np.arange(1.0, len(values) + 1)
        return Series(label, style, ordered.to_numpy(), x, kind)

    series = [one("labels", Style("#BBBBBB"), shares[0][1]["labels"], kind)]
    for row, found in shares:
        series.append(one(row.label, looks[row.method], found["predictions"], "line" if few else "curve"))
    xlabel = "class" if few else "rank of the class by frequency"
    return Figure("classes", "Predicted classes against labels", xlabel, "share of all images (%)", series)


def _cost(table: Table, looks: Mapping[str, Style]) -> Figure:
    sources = [row for row in table.rows if row.runs[0].name == "source"]
    unit = sources[0].seconds if sources else 1e-3
    xlabel = "time for an image, as a multiple of source" if sources else "time for an image (ms)"
    rows, note = _drawn(table, MOST_POINTS_APART)
    series = []
    for row in rows:
        error = None if (std := row.std()) is None else np.array([std])
        x, y = np.array([row.seconds / unit]), np.array([row.mean()])
        series.append(Series(row.label, looks[row.method], y, x, "point", error))
    devices = ", ".join(sorted({run.summary["device"] for row in rows for run in row.runs}))
    note = "; ".join(filter(None, [f"time on {devices}, with whatever else ran there", note]))
    return Figure("cost", "Cost against accuracy", xlabel, "accuracy, mean over domains (%)", series, note, log_x=True)


def _learning_rates(table: Table, looks: Mapping[str, Style]) -> Figure:
    """Methods with several learning rates are lines, the baseline is a horizontal one."""
    several = {method: rows for method, rows in table.rates.items() if len(rows) > 1}
    levels = [table.baseline] if table.baseline and table.baseline.lr is None else []
    best = sorted(several, key=lambda method: -max(row.mean() for row in several[method]))[:MOST_SERIES]
    series = [Series(row.method, looks[row.method], np.array([row.mean()]), kind="level") for row in levels]
    for method, rows in several.items():
        if method in best:
            error = np.array([row.std() or 0.0 for row in rows])
            x, y = np.array([row.lr for row in rows], dtype=float), np.array([row.mean() for row in rows])
            series.append(Series(method, looks[method], y, x, "line", error))
    note = "" if len(best) == len(several) else f"the best {len(best)} of {len(several)} methods"
    return Figure(
        "lr",
        "Accuracy against learning rate",
        "learning rate",
        "accuracy, mean over domains (%)",
        series,
        note,
        log_x=True,
        few_places=True,
    )
