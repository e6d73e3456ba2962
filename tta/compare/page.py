"""One page with every table and figure, which needs nothing but itself: no file beside it, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tta.compare.cells import (
    Column,
    domain_columns,
    heading,
    label_column,
    notes,
    origin,
    published_domains,
    rate_columns,
    seconds_column,
    seeds_column,
    summary_columns,
)
from tta.compare.drawn import Figure, Series
from tta.compare.rows import Table

DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot", "dashdot": "dashdot"}
MARKERS = {"circle": "circle", "square": "square", "triangle": "triangle-up", "diamond": "diamond", "cross": "x"}
PATTERNS = {"solid": "", "dashed": "/", "dotted": ".", "dashdot": "x"}
PLACES = {0: "", 1: "best", 2: "second"}


def page(tables: Sequence[Table], drawn: Sequence[Sequence[Figure]], warnings: Sequence[str]) -> str:
    """Write the page.

    Args:
        tables: to show one after another.
        drawn: the figures of each.
        warnings: that concern no single table.
    """
    from plotly.offline import get_plotlyjs

    sections = [_section(number, table, drawn[number]) for number, table in enumerate(tables)]
    plots = {f"figure-{n}-{k}": _plotly(figure) for n, some in enumerate(drawn) for k, figure in enumerate(some)}
    folder = Path(__file__).parent
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            # Nothing may be fetched, whatever a library would like to.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
            "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; worker-src blob:\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>tta-compare</title>",
            f"<style>{(folder / 'page.css').read_text()}</style>\n</head>\n<body>\n<h1>tta-compare</h1>",
            _paragraphs(warnings, "warning"),
            *sections,
            f"<script>{get_plotlyjs()}</script>",
            f'<script type="application/json" id="plots">{_json(plots)}</script>',
            f"<script>{(folder / 'page.js').read_text()}</script>\n</body>\n</html>\n",
        ]
    )


def _section(number: int, table: Table, drawn: Sequence[Figure]) -> str:
    columns = [label_column(table), *summary_columns(table), *domain_columns(table)]
    columns += [seeds_column(table), seconds_column(table)]
    parts = [
        f"<section>\n<h2>{escape(heading(table))}</h2>",
        _paragraphs(table.warnings, "warning"),
        _table(columns, rows=[row.label for row in table.rows]),
        _paragraphs(notes(table), "note"),
    ]
    if by_domain := published_domains(table):
        parts.append("<h3>Published figures by domain, and ours less those</h3>")
        parts.append(_table(by_domain, rows=[cell.text for cell in by_domain[0].cells]))
    if table.sweeps_rates:
        parts.append("<h3>Means over the domains by learning rate</h3>")
        parts.append(_table(rate_columns(table), rows=list(table.rates)))
    for place, figure in enumerate(drawn):
        parts.append(
            f'<figure>\n<h3>{escape(figure.title)}</h3>\n<div class="plot" id="figure-{number}-{place}"></div>'
        )
        parts.append(f"<figcaption>{escape(figure.note)}</figcaption>\n</figure>")
    return "\n".join([*parts, f'<p class="origin">Runs: {escape(origin(table))}.</p>\n</section>'])


def _paragraphs(texts: Sequence[str], kind: str) -> str:
    lead = "Warning: " if kind == "warning" else ""
    return "\n".join(f'<p class="{kind}">{lead}{escape(text)}</p>' for text in texts)


def _table(columns: Sequence[Column], rows: Sequence[str]) -> str:
    heads = "".join(
        f'<th scope="col" title="{escape(column.name)}"><button>{escape(column.head)}</button></th>'
        for column in columns
    )
    lines = []
    for place in range(len(rows)):
        cells = [f'<th scope="row">{escape(rows[place])}</th>']
        for column in columns[1:]:
            cell = column.cells[place]
            value = "" if cell.value is None else f' data-value="{cell.value:.9g}"'
            title = f' title="{escape(cell.title)}"' if cell.title else ""
            mark = f' class="{PLACES[cell.place]}"' if cell.place else ""
            cells.append(f"<td{mark}{value}{title}>{escape(cell.text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    table = f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="wide"><table class="sortable">\n{table}</table></div>'


def _plotly(figure: Figure) -> dict[str, Any]:
    """A figure as plotly has it."""
    layout: dict[str, Any] = {
        "template": None,
        "height": 460,
        "margin": {"l": 60, "r": 20, "t": 90 if figure.stretches else 20, "b": 60},
        "xaxis": {"title": {"text": figure.xlabel}, "automargin": True, "gridcolor": "#eee"},
        "yaxis": {"title": {"text": figure.ylabel}, "automargin": True, "gridcolor": "#eee", "zeroline": False},
        "legend": {"font": {"size": 11}},
        "hovermode": "closest",
        "shapes": [],
        "annotations": [],
    }
    if figure.log_x:
        words = [f"{tick:g}" for tick in figure.ticks]
        layout["xaxis"] |= {"type": "log", "tickvals": figure.ticks, "ticktext": words}
    start = 0.0
    for stop, name in figure.stretches:
        layout["shapes"].append(
            {"type": "line", "x0": stop, "x1": stop, "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
             "line": {"color": "#ccc", "width": 1}}
        )  # fmt: skip
        place = {"x": (start + stop) / 2, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        layout["annotations"].append({"text": escape(name), "showarrow": False, "textangle": -40, **place})
        start = stop
    if figure.stretches:
        layout["xaxis"] |= {"range": [0, start], "zeroline": False}
    if all(isinstance(series.x, list) for series in figure.series):
        layout["xaxis"]["type"] = "category"
    return {"data": [_trace(series, figure) for series in figure.series], "layout": layout}


def _trace(series: Series, figure: Figure) -> dict[str, Any]:
    style, y = series.style, _numbers(series.y)
    x = series.x if isinstance(series.x, list) else _numbers(series.x)
    trace: dict[str, Any] = {"name": "<br>".join(map(escape, series.lines)), "x": x, "y": y}
    error = {"error_y": {"array": _numbers(series.error), "thickness": 1}} if series.error is not None else {}
    line = {"color": style.color, "dash": DASHES[style.dash], "width": 2}
    marker = {"color": style.color, "symbol": MARKERS[style.marker], "size": 9}
    if series.kind == "bar":
        bars = {
            "color": style.color,
            "pattern": {"shape": PATTERNS[style.dash], "bgcolor": style.color, "fgcolor": "#fff"},
        }
        return trace | error | {"type": "bar", "marker": bars}
    if series.kind == "level":
        rates = [float(value) for other in figure.series for value in other.x]
        return trace | {"x": [min(rates), max(rates)], "y": y * 2, "mode": "lines", "line": line}
    if series.kind == "curve":
        return trace | {"mode": "lines", "line": line, "connectgaps": False}
    if series.kind == "point":
        return trace | error | {"mode": "markers", "marker": marker}
    return trace | error | {"mode": "lines+markers", "line": line, "marker": marker}


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(f"{value:.6g}") for value in values]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
