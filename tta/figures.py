"""Figures of finished runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from tta.compare import Run

MOST_NAMES = 40
"""Names that fit above a figure."""


def plot_online_accuracy(runs: Sequence[Run], labels: Iterable[Any], file: Path) -> None:
    """Draw the online accuracy within each domain, along the stream; a line for each label, the mean over its seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    import pandas as pd

    figure, axes = plt.subplots(figsize=(12, 4.5), layout="constrained")
    labels = list(labels)
    if len(labels) > 10:  # more than the usual colours, which would come again
        axes.set_prop_cycle(color=plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(labels))))
    stretches: list[tuple[float, str]] = []
    for label in labels:
        batches = pd.concat([run.batches() for run in runs if run.label == label])
        steps = batches.groupby("step", sort=True)
        curve = steps[["n", "domain_accuracy"]].mean()
        places = steps[[key for key in ("domain", "severity", "visit") if key in batches]].first().fillna(0)
        end = curve["n"].cumsum()
        visit = places.ne(places.shift()).any(axis=1).cumsum()
        color = None
        for _, part in curve.groupby(visit):
            (line,) = axes.plot(
                end[part.index], 100 * part["domain_accuracy"], color=color, label=label if color is None else None
            )
            color = line.get_color()
        stretches = _stretches(places, end)
    start = 0.0
    for stop, name in stretches:
        axes.axvline(stop, color="0.85", linewidth=0.8, zorder=0)
        axes.text(
            (start + stop) / 2, 1.01, name, rotation=40, ha="left", va="bottom", transform=axes.get_xaxis_transform()
        )
        start = stop
    axes.set(xlabel="images seen", ylabel="online accuracy in the domain (%)", xlim=(0, start))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _stretches(places: pd.DataFrame, end: pd.Series) -> list[tuple[float, str]]:
    """Name the stretches of a stream, each with its last image: its domains or, where they are too many, its rounds."""
    changes = int(places["domain"].ne(places["domain"].shift()).sum())
    key = "visit" if changes > MOST_NAMES and "visit" in places else "domain"
    number = places[key].ne(places[key].shift()).cumsum()
    return [
        (float(end[part.index[-1]]), f"{'' if key == 'domain' else 'visit '}{part[key].iloc[0]}")
        for _, part in places.groupby(number)
    ]


def plot_learning_rates(rates: Mapping[str, Mapping[float | None, str]], frame: pd.DataFrame, file: Path) -> None:
    """Draw accuracy against learning rate, a line for each method with its deviation over seeds.

    Methods without a learning rate are horizontal lines.

    Args:
        rates: for each method, the row of ``frame`` that a learning rate has.
        frame: with the columns ``mean`` and ``std``, in per cent.
        file: where the figure goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method, labels in rates.items():
        if None in labels:
            axes.axhline(frame["mean"][labels[None]], linestyle="--", color="0.5")
            axes.text(0.01, frame["mean"][labels[None]], method, va="bottom", transform=axes.get_yaxis_transform())
            continue
        places = sorted(rate for rate in labels if rate is not None)
        chosen = frame.loc[[labels[rate] for rate in places]]
        axes.errorbar(places, chosen["mean"], yerr=chosen["std"].fillna(0), marker="o", capsize=3, label=method)
    axes.set(xscale="log", xlabel="learning rate", ylabel="accuracy, mean over domains (%)")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)
