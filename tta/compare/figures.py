"""Figures as files: PNG and SVG, drawn by matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tta.compare.drawn import DASHES, Figure, Series
from tta.utils.paths import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "X"}
HATCHES = dict(zip(DASHES, ("", "///", "...", "xxx"), strict=True))
SIZES = {"": (14.0, 5.0), "domains": (14.0, 5.0), "classes": (10.5, 5.0), "lr": (9.0, 5.0), "cost": (9.0, 5.0)}
"""In inches, by the figure's name."""


def write_figures(figures: Sequence[Figure], stem: Path) -> list[Path]:
    """Draw figures into ``<stem>[-<name>].png`` and ``.svg``; return the files."""
    names = (f"{stem.name}-{figure.name}" if figure.name else stem.name for figure in figures)
    return [file for figure, name in zip(figures, names, strict=True) for file in draw(figure, stem.with_name(name))]


def draw(figure: Figure, stem: Path) -> list[Path]:
    """Draw one figure into ``<stem>.png`` and ``<stem>.svg``."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tta", "font.size": 10}):
        canvas, axes = plt.subplots(figsize=SIZES[figure.name], layout="constrained")
        bars = [series for series in figure.series if series.kind == "bar"]
        for series in figure.series:
            _draw_series(axes, series, bars)
        _name_stretches(axes, figure)
        axes.set(xlabel=figure.xlabel, ylabel=figure.ylabel)
        if figure.log_x:
            axes.set_xscale("log")
            axes.set_xticks(figure.ticks, [f"{tick:g}" for tick in figure.ticks])
            axes.minorticks_off()
        axes.grid(axis="y" if bars or figure.stretches else "both", color="0.9")
        axes.set_axisbelow(True)
        if figure.note:
            letters = int(13 * (SIZES[figure.name][0] - 2.5))  # beside the legend
            canvas.suptitle(textwrap.fill(figure.note, letters), x=0.01, ha="left", fontsize=8, color="0.35")
        canvas.legend(loc="outside right upper", frameon=False, fontsize=9 if len(figure.series) <= 16 else 7)
        files = []
        for kind in ("png", "svg"):
            with atomic_file(stem.with_name(f"{stem.name}.{kind}")) as file:
                canvas.savefig(file, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            files.append(stem.with_name(f"{stem.name}.{kind}"))
        plt.close(canvas)
    return files


def _draw_series(axes: Axes, series: Series, bars: Sequence[Series]) -> None:
    style = series.style
    label = "\n  ".join(series.lines)
    line: dict[str, Any] = {"color": style.color, "linestyle": style.dash, "label": label}
    if series.kind == "level":
        axes.axhline(float(series.y[0]), linewidth=1.5, **line)
    elif series.kind == "curve":
        axes.plot(series.x, series.y, linewidth=1.5, **line)
    elif series.kind == "bar":
        width = 0.85 / len(bars)
        places = np.arange(len(series.y)) + (bars.index(series) - (len(bars) - 1) / 2) * width
        axes.bar(places, series.y, width, color=style.color, label=label, hatch=HATCHES[style.dash],
                 edgecolor="white", linewidth=0, yerr=series.error, error_kw={"elinewidth": 0.7})  # fmt: skip
        axes.set_xticks(range(len(series.y)), list(series.x), rotation=0 if len(series.x) < 16 else 40)
        axes.set_xlim(-0.6, len(series.y) - 0.4)
    else:
        if series.kind == "point":
            line["linestyle"] = "none"
        axes.errorbar(series.x, series.y, yerr=series.error, marker=MARKERS[style.marker], capsize=3, markersize=6,
                      linewidth=1.5, **line)  # fmt: skip


def _name_stretches(axes: Axes, figure: Figure) -> None:
    start = 0.0
    for stop, name in figure.stretches:
        axes.axvline(stop, color="0.8", linewidth=0.8, zorder=0)
        axes.text((start + stop) / 2, 1.01, name, rotation=40, ha="left", va="bottom",
                  transform=axes.get_xaxis_transform(), fontsize=9)  # fmt: skip
        start = stop
    if figure.stretches:
        axes.set_xlim(0, start)
