"""The command ``tta-compare``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tta.compare.published import read_published
from tta.compare.reading import Found, find
from tta.compare.rows import Table, named, tables, told_apart
from tta.compare.significance import TESTS
from tta.utils.paths import atomic_file

if TYPE_CHECKING:
    from tta.compare.drawn import Figure

PIPED = 200
"""Columns of the output where it is not a terminal."""

EPILOG = """\
Writes comparison.md, .tex (booktabs), .csv (a line per row) and -long.csv (a line per run and domain) into OUT; runs
that cannot be compared, for other weights, images, order, batch size or resets, get comparison-1, comparison-2, ...

examples
  tta-compare runs/demo                                     table in the terminal, and the files
  tta-compare runs/demo --figures --html                    figures too, and a page with all of it
  tta-compare runs/lr --select best-lr --baseline 'tent + em'
  tta-compare runs/table12 --published table12_resnet50     beside published figures, with the differences
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``tta-compare``; exits with 1 after an error."""
    options = _parser().parse_args(arguments)
    try:
        _compare(options)
    except BrokenPipeError:  # a reader that has seen enough, e.g. head
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"tta-compare: error: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tta-compare",
        description="Compare finished runs: mean and deviation over seeds, differences to a baseline, figures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="folders that hold runs, at any depth")
    parser.add_argument("--out", type=Path, help="where the files go; default: the folder that holds the runs")
    parser.add_argument("--baseline", help="row to compare with, by label or method; default: bn_adapt, else source")
    parser.add_argument(
        "--select",
        choices=["best-lr"],
        help="keep of each method the learning rate with the best mean; marked as chosen on the test stream",
    )
    parser.add_argument(
        "--published",
        metavar="[FILE:]NAME",
        help="published figures beside ours (FILE: like tta/compare/published.yaml); a wrong NAME lists those there",
    )
    parser.add_argument("--test", choices=TESTS, default="wilcoxon", help="of the differences; default: wilcoxon")
    parser.add_argument("--std", action="store_true", help="deviation over seeds for each domain too")
    parser.add_argument("--figures", action="store_true", help="write figures, PNG and SVG")
    parser.add_argument("--html", action="store_true", help="write one page with sortable tables and figures")
    return parser


def _compare(options: argparse.Namespace) -> None:
    from rich.console import Console

    from tta.compare.terminal import show, warn

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED  # what goes on to another program need not be cut to a terminal's width
    published = read_published(options.published) if options.published else None
    found = find(options.runs)
    compared = tables(found.runs, options.baseline, options.select == "best-lr", options.test, published)
    general = [*_left_out(found), *_apart(compared)]
    for number, table in enumerate(compared, 1):
        if len(compared) > 1:
            console.rule(f"table {number}", align="left")
        show(table, console, options.std)
    for warning in general:
        warn(console, warning)
    out: Path = options.out or _folder(options.runs)
    written = _write(compared, general, out, options)
    console.print(f"written to {out}: {', '.join(file.name for file in written)}", soft_wrap=True, markup=False)
    if not (options.figures or options.html):
        console.print("--figures adds figures, --html a page with sortable tables", style="dim")


def _left_out(found: Found) -> list[str]:
    """Name runs that are not in the tables."""
    warnings = []
    if found.unfinished:
        runs = "1 run is" if len(found.unfinished) == 1 else f"{len(found.unfinished)} runs are"
        warnings.append(f"{runs} unfinished and left out: {named(path.name for path in found.unfinished)}")
    warnings += [f"left out, {file} cannot be read: {reason}" for file, reason in found.unreadable.items()]
    return warnings


def _apart(compared: Sequence[Table]) -> list[str]:
    if len(compared) < 2:
        return []
    return [f"rows of different tables cannot be compared: {'; '.join(told_apart(compared))}"]


def _folder(places: Sequence[Path]) -> Path:
    """The folder that holds the runs: the first that was given or, if that is itself a run, the one around it."""
    first = places[0]
    return first.parent if (first / "summary.json").is_file() else first


def _write(compared: Sequence[Table], general: Sequence[str], out: Path, options: argparse.Namespace) -> list[Path]:
    drawn: list[list[Figure]] = []
    if options.figures or options.html:
        from tta.compare.drawn import figures, styles

        looks = styles(compared)
        drawn = [figures(table, looks) for table in compared]
    written: list[Path] = []
    try:
        for number, table in enumerate(compared):
            stem = out / ("comparison" if len(compared) == 1 else f"comparison-{number + 1}")
            written += _write_tables(table, stem, options.std, general)
            if options.figures:
                from tta.compare.figures import write_figures

                written += write_figures(drawn[number], stem)
        if options.html:
            from tta.compare.page import page

            written.append(_text(out / "comparison.html", page(compared, drawn, general)))
    except OSError as error:
        raise OSError(f"--out: {out} cannot be written ({error}); choose another with --out FOLDER") from error
    return written


def _write_tables(table: Table, stem: Path, std: bool, warnings: Sequence[str]) -> list[Path]:
    from tta.compare.text import latex, long_csv, markdown, wide_csv

    return [
        _text(stem.with_name(f"{stem.name}.md"), markdown(table, std, warnings)),
        _text(stem.with_name(f"{stem.name}.tex"), latex(table, std, warnings, stem.name)),
        _text(stem.with_name(f"{stem.name}.csv"), wide_csv(table)),
        _text(stem.with_name(f"{stem.name}-long.csv"), long_csv(table)),
    ]


def _text(path: Path, text: str) -> Path:
    with atomic_file(path) as file:
        file.write_text(text)
    return path
