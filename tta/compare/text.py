"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from tta.compare.cells import (
    Cell,
    Column,
    domain_columns,
    heading,
    label_column,
    notes,
    origin,
    published_domains,
    rate_columns,
    summary_columns,
)
from tta.compare.rows import Row, Table


def markdown(table: Table, std: bool = False, warnings: Sequence[str] = ()) -> str:
    """Table, notes, warnings (``warnings`` are more), and a table of means by learning rate if there are several."""
    columns = [label_column(table), *domain_columns(table, std), *summary_columns(table)]
    lines = [f"{heading(table)}.", "", *_markdown(columns), ""]
    lines += [line for note in notes(table) for line in (note, "")]
    lines += [line for warning in (*table.warnings, *warnings) for line in (f"**Warning:** {warning}.", "")]
    if by_domain := published_domains(table):
        lines += ["Published figures by domain, and ours less those:", "", *_markdown(by_domain), ""]
    if table.sweeps_rates:
        lines += ["Means over the domains; the best learning rate of each row in bold.", ""]
        lines += [*_markdown(rate_columns(table)), ""]
    return "\n".join([*lines, f"Runs: {origin(table)}."]) + "\n"


def _markdown(columns: Sequence[Column]) -> list[str]:
    marks = {0: ("", ""), 1: ("**", "**"), 2: ("<ins>", "</ins>")}

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rows = zip(*(column.cells for column in columns), strict=True)
    return [
        line([column.head for column in columns]),
        "|---|" + "---:|" * (len(columns) - 1),
        *(line([f"{marks[cell.place][0]}{cell.text}{marks[cell.place][1]}" for cell in row]) for row in rows),
    ]


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "Δ": r"$\Delta$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "±": r"$\pm$",
    "š": r"\v{s}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """Write text so that LaTeX prints it; letters that it may not know become question marks."""
    escaped = "".join(SPECIAL.get(mark, mark if mark.isascii() else "?") for mark in text)
    return re.sub(r"(?<=[\s(])-(?=\d)|^-(?=\d)", "$-$", escaped)


def latex(table: Table, std: bool = False, warnings: Sequence[str] = (), name: str = "comparison") -> str:
    """A booktabs table, its label ``tab:<name>``; the document needs the packages booktabs and graphicx."""
    columns = [label_column(table), *domain_columns(table, std), *summary_columns(table)]
    rows = zip(*(column.cells for column in columns), strict=True)
    comments = [*(f"Warning: {warning}." for warning in (*table.warnings, *warnings)), f"Runs: {origin(table)}."]
    caption = " ".join([f"{heading(table)}. The best of each column in bold, the second underlined.", *notes(table)])
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        *(f"% {' '.join(comment.split())}" for comment in comments),
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{tab:{name}}}",
        r"\setlength{\tabcolsep}{3pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        " & ".join(escape_latex(column.head) for column in columns) + r" \\",
        r"\midrule",
        *(" & ".join(map(_latex, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex(cell: Cell) -> str:
    text = escape_latex(cell.text)
    return {0: text, 1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}[cell.place]


def wide_csv(table: Table) -> str:
    """A line for each row of the table, unrounded; accuracies in per cent."""
    names = [*table.columns, "mean"]
    deviations = ["std" if name == "mean" else f"{name} std" for name in names]
    head: list[object] = ["method", "lr", "seeds", *names, *deviations, "baseline"]
    head += ["difference", "difference std", "domains better", "domains worse", "p", "p_holm", "test"]
    head += ["lr chosen on the test stream", "seconds per image"]
    head += [f"published {name}" for name in _published_names(table)]
    lines: list[list[object]] = [head]
    for row in table.rows:
        lines.append([row.runs[0].method + row.runs[0].detail, row.lr, len(row.runs), *map(row.mean, names)])
        lines[-1] += map(row.std, names)
        found = table.differences.get(row.label)
        if found is None or found.mean is None or table.baseline is None:
            lines[-1] += [table.baseline.label if table.baseline else None, *[None] * 7]
        else:
            lines[-1] += [table.baseline.label, found.mean, found.std, found.better, found.worse]
            lines[-1] += [found.p, found.p_holm, table.test]
        lines[-1] += [bool(row.chosen_of), row.seconds]
        lines[-1] += _published_values(table, row)
    return _csv(lines)


def _published_names(table: Table) -> list[str]:
    return [*table.domains, "mean", "std", "row", "source", "difference"] if table.published else []


def _published_values(table: Table, row: Row) -> list[object]:
    if table.published is None:
        return []
    if (figures := table.published.find(row)) is None:
        return [None] * len(_published_names(table))
    by_domain = [figures.of(name) for name in (*table.domains, "mean")]
    origin = [table.published.match(row), table.published.source]
    return [*by_domain, figures.std, *origin, row.mean() - figures.mean]


def long_csv(table: Table) -> str:
    """A line for each visit of a domain in each run, accuracies as fractions: for programs of one's own."""
    head: list[object] = ["method", "lr", "seed", "domain", "severity", "visit", "n", "accuracy", "seconds", "run"]
    lines: list[list[object]] = [head]
    for row in table.rows:
        for run in row.runs:
            for visit in run.summary["domains"]:
                figures = [visit.get(key) for key in ("domain", "severity", "visit", "n", "accuracy", "seconds")]
                lines.append([row.method, row.lr, run.seed, *figures, str(run.path)])
    return _csv(lines)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[f"{value:.6g}" if isinstance(value, float) else value for value in line] for line in lines])
    return text.getvalue()
