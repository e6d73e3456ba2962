"""A table's text, whatever it is written as: header, cells with their places, and what a reader must know."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tta.compare.reading import LABELLED
from tta.compare.rows import Row, Table, named
from tta.compare.significance import NAMES, smallest_p

SHORT = {
    "gaussian_noise": "gauss",
    "shot_noise": "shot",
    "impulse_noise": "impul",
    "speckle_noise": "speck",
    "defocus_blur": "defoc",
    "glass_blur": "glass",
    "motion_blur": "motion",
    "zoom_blur": "zoom",
    "gaussian_blur": "gblur",
    "brightness": "bright",
    "contrast": "contr",
    "saturate": "satur",
    "spatter": "spatt",
    "elastic_transform": "elast",
    "pixelate": "pixel",
    "jpeg_compression": "jpeg",
}
"""Names that the field has for corruptions in the heads of its tables."""


@dataclass(frozen=True)
class Cell:
    """Text of a cell."""

    text: str
    place: int = 0  # 1 for the best of its column, 2 for the second
    value: float | None = None  # what to sort by, if not the text
    title: str = ""  # more about it


@dataclass(frozen=True)
class Column:
    """A column: its head, and a cell for each row."""

    head: str
    cells: list[Cell]
    name: str = ""  # in full


def summary_columns(table: Table) -> list[Column]:
    """Columns of the mean and, with a baseline, of the difference to it and its p."""
    columns = [_accuracies(table, "mean", "mean", 2, std=True)]
    if table.baseline and table.differences:
        columns += [_differences(table), _p_values(table)]
    return columns + published_columns(table)


def published_columns(table: Table) -> list[Column]:
    """Published means, and ours less them, if there are any."""
    if table.published is None:
        return []
    theirs, ours = [], []
    for row in table.rows:
        if (figures := table.published.find(row)) is None:
            theirs.append(Cell(""))
            ours.append(Cell(""))
            continue
        spread = "" if figures.std is None else f" ±{figures.std:.2f}"
        theirs.append(Cell(f"{figures.mean:.1f}{spread}", value=figures.mean, title=str(table.published.match(row))))
        ours.append(Cell(f"{row.mean() - figures.mean:+.2f}", value=row.mean() - figures.mean))
    name = f"{table.published.name}: {table.published.source}"
    return [Column("published", theirs, name), Column("Δ published", ours, name)]


def published_domains(table: Table) -> list[Column]:
    """By domain, two lines for each row that has such figures: what is published, and ours less that."""
    found = table.published
    rows = [(row, figures) for row in table.rows if found and (figures := found.find(row)) and figures.domains]
    if not rows:
        return []
    labels = [Cell(text) for row, _ in rows for text in (f"{row.label}: published", f"{row.label}: ours less that")]
    columns = [Column("method", labels)]
    for name in (*table.domains, "mean"):
        cells: list[Cell] = []
        for row, figures in rows:
            theirs = figures.of(name)
            cells.append(Cell("" if theirs is None else f"{theirs:.1f}"))
            cells.append(Cell("" if theirs is None else f"{row.mean(name) - theirs:+.1f}"))
        columns.append(Column(SHORT.get(name, name.replace("_", " ")), cells, name))
    return columns


def domain_columns(table: Table, std: bool = False) -> list[Column]:
    """Columns of the domains, and of severities or visits."""
    return [_accuracies(table, name, SHORT.get(name, name.replace("_", " ")), 1, std) for name in table.columns]


def label_column(table: Table) -> Column:
    """The column of the rows' labels."""
    return Column("method", [Cell(row.label) for row in table.rows])


def seeds_column(table: Table) -> Column:
    """How many seeds each row has."""
    return Column("seeds", [Cell(str(len(row.runs)), value=len(row.runs)) for row in table.rows])


def seconds_column(table: Table) -> Column:
    """What an image costs."""
    return Column("ms/image", [Cell(f"{1e3 * row.seconds:.3g}", value=1e3 * row.seconds) for row in table.rows])


def _accuracies(table: Table, name: str, head: str, digits: int, std: bool) -> Column:
    means = [row.mean(name) for row in table.rows]
    places = _places(means, digits)
    cells = [
        Cell(_accuracy(row, name, digits, std), place, mean, _accuracy(row, name, 2, True))
        for row, mean, place in zip(table.rows, means, places, strict=True)
    ]
    return Column(head, cells, name)


def _places(means: Sequence[float], digits: int) -> list[int]:
    """1 for the best and 2 for the second, what reads the same alike; beside several best ones there is no second."""
    shown = [round(mean, digits) for mean in means]
    if len(shown) < 2:
        return [0] * len(shown)
    best, second = sorted(shown, reverse=True)[:2]
    return [1 if value == best else 2 if value == second else 0 for value in shown]


def _accuracy(row: Row, name: str, digits: int, std: bool) -> str:
    deviation = row.std(name)
    text = f"{row.mean(name):.{digits}f}"
    return f"{text} ±{deviation:.{digits}f}" if std and deviation is not None else text


def _differences(table: Table) -> Column:
    assert table.baseline is not None
    cells = []
    for row in table.rows:
        found = table.differences.get(row.label)
        if found is None:
            cells.append(Cell("baseline", value=0.0))
        elif found.mean is None:
            cells.append(Cell(""))
        else:
            spread = "" if found.std is None else f" ±{found.std:.2f}"
            cells.append(Cell(f"{found.mean:+.2f}{spread}", value=found.mean))
    return Column(f"Δ {table.baseline.label}", cells)


def _p_values(table: Table) -> Column:
    cells = []
    for row in table.rows:
        found = table.differences.get(row.label)
        p = None if found is None else found.p_holm
        cells.append(Cell("" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}", value=p))
    return Column("p", cells)


def heading(table: Table) -> str:
    """Say what was measured."""
    run = table.rows[0].runs[0]
    severities = sorted({visit["severity"] for visit in run.summary["domains"]}, key=str)
    severity = f"severity {', '.join(map(str, severities))}, " if severities != [0] else ""
    own, all_of_them = (run.summary.get(key) for key in ("classes", "classes_of_the_backbone"))
    classes = f"{own} of {all_of_them} classes, " if own != all_of_them else ""
    images = [visit["n"] for visit in run.summary["domains"]]
    return (
        f"{run.title}: online accuracy in per cent; {severity}{classes}"
        f"{' to '.join(str(n) for n in sorted({min(images), max(images)}))} images per domain, "
        f"batch size {run.summary['config']['stream'].get('batch_size')}, weights {run.summary['weights']}"
    )


def notes(table: Table) -> list[str]:
    """What a reader must know of the figures: deviations, the test, and how learning rates were chosen."""
    found = []
    if any(len(row.runs) > 1 for row in table.rows):
        found.append("± is the standard deviation over seeds.")
    if table.baseline and table.differences:
        found.append(_test_note(table))
    if chosen := [row for row in table.rows if row.chosen_of]:
        most = max(row.chosen_of for row in chosen)
        found.append(
            f"† learning rate chosen on the test stream, the best of up to {most} by the mean of this very table: "
            "accuracy, difference and p of such a row are flattered."
        )
    if any(run.uses_labels for run in table.runs):
        found.append(
            f"{LABELLED} options were chosen with labels of the test stream: an upper bound, no method that could be "
            "used without labels."
        )
    return found + _published_notes(table)


def _published_notes(table: Table) -> list[str]:
    """Where published figures are from, and which rows have no counterpart."""
    if (published := table.published) is None:
        return []
    origin = f"Published: {published.source}; Δ published is ours less that."
    found = [f"{origin} {published.note}." if published.note else origin]
    if without := [row.label for row in table.rows if not published.match(row)]:
        found.append(f"No published figure for {named(without)}.")
    matched = {published.match(row) for row in table.rows}
    if missing := [label for label in published.rows if label not in matched]:
        found.append(f"Published, but not here: {named(missing)}.")
    return found


def _test_note(table: Table) -> str:
    assert table.baseline is not None
    domains = len(table.domains)
    pairs = f"Δ is the accuracy less that of {table.baseline.label}, paired over seeds and domains"
    if domains < 2:
        return f"{pairs}; one domain is too few for a test over domains, so there is no p."
    text = (
        f"{pairs}. p: {NAMES[table.test]}, two-sided, over the {domains} domains, of differences averaged over seeds "
        "(seeds share their images, and are no independent samples), corrected after Holm for "
        f"{len(table.differences)} comparison{'s' * (len(table.differences) > 1)}."
    )
    if table.test == "wilcoxon" and smallest_p(domains) > 0.01:
        text += f" With {domains} domains this p is at least {smallest_p(domains):.2g} before the correction."
    if table.test == "t":
        text += " It takes the differences for normal."
    return text


def origin(table: Table) -> str:
    """Say which commands gave the runs, when, and on what."""

    def different(values: Iterable[str]) -> str:
        return named(dict.fromkeys(values))

    runs = [run for row in table.every_rate for run in row.runs]
    commands = different(f"`{shlex.join(['tta', *run.summary['command'][1:]])}`" for run in runs)
    dates = different(run.summary["date"][:10] for run in sorted(runs, key=lambda run: run.summary["date"]))
    versions = different(f"torch {run.summary['packages']['torch']}" for run in runs)
    return f"{commands}; {dates}; {versions}; {different(run.summary['device'] for run in runs)}"


def rate_columns(table: Table) -> list[Column]:
    """Means by learning rate: a row for each method, a column for each rate; the best two of a row have places."""
    rates = sorted({row.lr for row in table.every_rate}, key=lambda rate: -1 if rate is None else rate)
    cells: dict[float | None, list[Cell]] = {rate: [] for rate in rates}
    for rows in table.rates.values():
        here = {row.lr: (row, place) for row, place in zip(rows, _places([r.mean() for r in rows], 2), strict=True)}
        for rate in rates:
            if rate not in here:
                cells[rate].append(Cell(""))
                continue
            row, place = here[rate]
            cells[rate].append(Cell(_accuracy(row, "mean", 2, std=True), place, row.mean()))
    heads = ["no learning rate" if rate is None else f"{rate:g}" for rate in rates]
    methods = Column("method", [Cell(method) for method in table.rates])
    return [methods, *(Column(head, cells[rate]) for head, rate in zip(heads, rates, strict=True))]
