"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as View
from rich.text import Text

from tta.compare.cells import Column, domain_columns, heading, label_column, notes, seeds_column, summary_columns
from tta.compare.rows import Table

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 60
"""Of more rows the terminal shows the means alone."""

STYLES = {0: "", 1: "bold", 2: "underline"}
GAP = 2
NARROWEST = 15
"""Columns that labels may be squeezed into, to have the means and what is said of them beside each other."""


def show(table: Table, console: Console, std: bool = False) -> None:
    """Print a table, in blocks of columns if the terminal is too narrow for all beside each other."""
    console.print(Text(heading(table)))
    for block in _blocks(table, console.width, std):
        console.print(_view(block, _label_width(block[0], console.width)))
    if len(table.rows) > MOST_ROWS:
        console.print("More rows than the terminal shows by domain: the files have them.")
    for note in notes(table):
        console.print(Text(note, style="dim"))
    for warning in table.warnings:
        warn(console, warning)
    console.print()


def warn(console: Console, text: str) -> None:
    """Print a warning."""
    console.print(Text.assemble(("warning: ", "yellow"), text))


def _blocks(table: Table, width: int, std: bool) -> Iterator[Sequence[Column]]:
    """Columns that fit beside each other, each block with the labels: first the means, then the domains."""

    def fit(columns: Sequence[Column], narrowest: int = width) -> bool:
        return min(_label_width(labels, width), narrowest) + sum(map(_width, columns)) <= width

    labels = label_column(table)
    summary = [seeds_column(table), *summary_columns(table)]
    domains = domain_columns(table, std) if len(table.rows) <= MOST_ROWS else []
    if fit([*domains, *summary]):
        yield [labels, *domains, *summary]
        return
    for columns, narrowest in ((summary, NARROWEST), (domains, width)):
        block: list[Column] = []
        for column in columns:
            if block and not fit([*block, column], narrowest):
                yield [labels, *block]
                block = []
            block.append(column)
        if block:
            yield [labels, *block]


def _width(column: Column) -> int:
    return max(map(len, (column.head, *(cell.text for cell in column.cells)))) + GAP


def _label_width(labels: Column, width: int) -> int:
    """Labels may take two fifths of the terminal; longer ones go over several lines."""
    return min(_width(labels), max(2 * width // 5, 20))


def _view(columns: Sequence[Column], label_width: int) -> RenderableType:
    view = View(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for number, column in enumerate(columns):
        if number:
            view.add_column(column.head, justify="right", no_wrap=True, min_width=_width(column) - GAP)
        else:
            view.add_column(column.head, overflow="fold", max_width=label_width - GAP)
    for cells in zip(*(column.cells for column in columns), strict=True):
        view.add_row(*(Text(cell.text, style=STYLES[cell.place]) for cell in cells))
    return view
