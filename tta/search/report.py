"""What a person sees of a search: a line for each trial, tables, and a picture."""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tta.search.space import Space, Values
from tta.utils.paths import atomic_file

if TYPE_CHECKING:
    from tta.search.result import Measured
    from tta.search.study import Done

NOTE = "chosen with labels of the share: an upper bound, not a fair method"


def words(values: Mapping[str, float]) -> str:
    """Write values as one writes them on the command line, by the last part of each key."""
    return " ".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in values.items())


def best(done: Sequence[Done]) -> Done:
    """Choose the trial with the highest accuracy, the earliest of several.

    Raises:
        ValueError: if none got to the end.
    """
    finished = [one for one in done if one.accuracy is not None]
    if not finished:
        raise ValueError(f"none of {len(done)} trials got to the end, as all diverged: choose smaller search.space")
    return max(finished, key=lambda one: (one.accuracy, -one.number))


def outcome(one: Done) -> str:
    """Say how a trial ended."""
    if one.accuracy is not None:
        return f"{100 * one.accuracy:.2f} %"
    if one.diverged:
        return "diverged"
    return f"given up after {one.seen} domain(s)" + (f" at {100 * one.so_far:.2f} %" if one.so_far is not None else "")


class Progress:
    """A line for each finished trial, whichever process did it, and a live bar where there is a terminal.

    Args:
        total: trials in all.
        done: those of earlier; they are counted, not shown.
        folder: of the search, for the first line.
    """

    def __init__(self, total: int, done: Sequence[Done], folder: str) -> None:
        self.total = total
        self._shown = {one.name for one in done}
        self._best = max((one.accuracy for one in done if one.accuracy is not None), default=None)
        print(f"search in {folder}: {total} trials" + (f", {len(done)} of them done" if done else ""))

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=15),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("trials", total=self.total, completed=len(self._shown))
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, done: Sequence[Done]) -> None:
        """Tell of what has finished since."""
        for one in done:
            if one.name in self._shown:
                continue
            self._shown.add(one.name)
            ahead = one.accuracy is not None and (self._best is None or one.accuracy > self._best)
            self._best = one.accuracy if ahead else self._best
            said = f"{words(one.values)}: {outcome(one)}{', best so far' * ahead}"
            print(f"trial {one.number + 1}/{self.total} {said}", flush=True)
        self._bar.update(self._task, completed=len(self._shown))


def write_trials(file: Path, space: Space, done: Sequence[Done]) -> None:
    """Write a row for each trial."""
    with atomic_file(file) as temporary, temporary.open("w", newline="") as rows:
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow(["trial", *space.keys, "accuracy", "domains_until_given_up", "accuracy_then", "diverged"])
        for one in done:
            given_up = one.accuracy is None
            figures = [one.accuracy, one.seen if given_up else None, one.so_far if given_up else None]
            written = [f"{value:.6f}" if isinstance(value, float) else value for value in figures]
            writer.writerow([one.number, *(one.values[key] for key in space.keys), *written, int(one.diverged)])


def before(first: Values | None, done: Sequence[Done]) -> str:
    """Say what there was before the search, which is the first trial."""
    return f"; {outcome(done[0])} with {words(first)}, where it began" if first is not None and done else ""


def conclude(
    folder: Path, title: str, first: Values | None, done: Sequence[Done], measured: Sequence[Measured]
) -> None:
    """Print the result, and write it as ``search.md``."""
    from rich.console import Console
    from rich.table import Table

    chosen = best(done)
    given_up = sum(one.accuracy is None for one in done)
    heading = (
        f"{title}: {words(chosen.values)}, the best of {len(done)} trials ({given_up} given up), "
        f"{outcome(chosen)} on the share{before(first, done)}. Online accuracy in per cent, mean over domains"
    )
    header, *rows = _view(measured)
    view = Table(pad_edge=False)
    for number, name in enumerate(header):
        view.add_column(name, justify="right" if number else "left")
    for row in rows:
        view.add_row(*row)
    print(f"{heading}:")
    Console().print(view)
    print(f"‡ {NOTE}")
    lines = [
        f"{heading}.",
        "",
        f"| {' | '.join(header)} |",
        "|---|" + "---:|" * (len(header) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"‡ {NOTE}.",
        "",
        f"`{shlex.join(['tta-search', *(word.removeprefix('++') for word in sys.argv[1:])])}`",
    ]
    with atomic_file(folder / "search.md") as file:
        file.write_text("\n".join(lines) + "\n")


def _view(measured: Sequence[Measured]) -> list[list[str]]:
    """Text of the table, its header first."""
    parts = list(dict.fromkeys(one.part for one in measured))
    rows = []
    for label in dict.fromkeys(one.label for one in measured):
        own = [one for one in measured if one.label == label]
        cells = [_mean([100 * one.accuracy for one in own if one.part == part]) for part in parts]
        rows.append([f"{label} ‡" if own[0].uses_labels else label, *cells])
    return [["", *parts], *rows]


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f}" + (f" ±{stdev(values):.2f}" if len(values) > 1 else "")


def plot(folder: Path, space: Space, done: Sequence[Done]) -> None:
    """Draw the trials, as ``search.png`` and ``search.svg``: over the plane of two keys, else a panel for each key."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if len(space.keys) == 2:
        figure, axes = plt.subplots(figsize=(6.4, 5), layout="constrained")
        _plane(figure, axes, space, done)
    else:
        count = len(space.keys)
        figure, many = plt.subplots(1, count, figsize=(1.5 + 4 * count, 4), layout="constrained", squeeze=False)
        for axes, one in zip(many[0], space.ranges, strict=True):
            _panel(axes, one.key, one.log, done)
        many[0][0].set(ylabel="accuracy on the share (%)")
    for kind in ("png", "svg"):
        # The same trials give the same bytes.
        with atomic_file(folder / f"search.{kind}") as file, plt.rc_context({"svg.hashsalt": "tta"}):
            figure.savefig(file, dpi=150, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)


def _plane(figure: Any, axes: Any, space: Space, done: Sequence[Done]) -> None:
    x, y = space.ranges
    axes.set(xlabel=x.key, ylabel=y.key, xscale="log" if x.log else "linear", yscale="log" if y.log else "linear")
    finished = [one for one in done if one.accuracy is not None]
    given_up = [one for one in done if one.accuracy is None]
    _forbidden(axes, space)
    if given_up:
        axes.scatter(*_points(given_up, x.key, y.key), marker="x", s=24, color="0.45", linewidths=1, label="given up")
    values = [100 * (one.accuracy or 0) for one in finished]
    dots = axes.scatter(*_points(finished, x.key, y.key), c=values, cmap="viridis", s=46, label="to the end")
    chosen = best(done)
    label = f"best: {words(chosen.values)}"
    axes.scatter(*_points([chosen], x.key, y.key), marker="*", s=230, color="tab:red", edgecolors="w", label=label)
    figure.colorbar(dots, label="accuracy on the share (%)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small", markerscale=0.7)


def _forbidden(axes: Any, space: Space) -> None:
    """Shade the points of a grid that do not go together."""
    from matplotlib.patches import Rectangle

    x, y = space.ranges
    across, up = ((one.points or [])[1] - one.low if one.points else 0.0 for one in (x, y))
    label = "not allowed"
    for at in space.all_points or []:
        if not space.allowed(at):
            corner = (at[x.key] - across / 2, at[y.key] - up / 2)
            axes.add_patch(Rectangle(corner, across, up, color="0.9", linewidth=0, zorder=0, label=label))
            label = ""
    if space.all_points:
        axes.set(xlim=(x.low - across / 2, x.high + across / 2), ylim=(y.low - up / 2, y.high + up / 2))
        axes.locator_params(nbins=11, steps=[1, 2, 5, 10])  # no quarters: few grids have them


def _points(trials: Sequence[Done], x: str, y: str) -> tuple[list[float], list[float]]:
    return [one.values[x] for one in trials], [one.values[y] for one in trials]


def _panel(axes: Any, key: str, log: bool, done: Sequence[Done]) -> None:
    finished = [one for one in done if one.accuracy is not None]
    chosen = best(done)
    axes.plot([one.values[key] for one in finished], [100 * (one.accuracy or 0) for one in finished], "o", markersize=5)
    axes.plot(chosen.values[key], 100 * (chosen.accuracy or 0), "*", markersize=15, color="tab:red")
    axes.set(xlabel=key, xscale="log" if log else "linear")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
