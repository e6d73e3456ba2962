from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from helpers.errors import assert_names
from helpers.written_runs import write_run
from tta.compare import Table, find_runs, tables
from tta.compare.cells import domain_columns, notes
from tta.compare.terminal import show
from tta.compare.text import escape_latex, latex, long_csv, markdown, wide_csv

NAMES = ("gaussian_noise", "fog", "my_own", "snow", "frost", "jpeg_compression", "brightness", "contrast")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """The differences of tent + em are 10, 11, ... 17 points, by seed one more or less; t3a is as good as source."""
    for seed in (0, 1):
        write_run(tmp_path / f"s{seed}", "source", seed, dict.fromkeys(NAMES, 0.5))
        write_run(tmp_path / f"t{seed}", "t3a", seed, dict.fromkeys(NAMES, 0.5))
        better = {name: 0.6 + 0.01 * n + (0.01, -0.01)[seed] for n, name in enumerate(NAMES)}
        write_run(tmp_path / f"e{seed}", "tent", seed, better)
    (found,) = tables(find_runs([tmp_path]))
    return found


def rates(folder: Path) -> Table:
    for lr, accuracy in ((0.001, 0.6), (0.01, 0.8), (0.1, 0.7)):
        for seed in (0, 1):
            write_run(folder / f"{lr}-{seed}", "tent", seed, dict.fromkeys(NAMES, accuracy), lr=lr)
    (found,) = tables(find_runs([folder]), best_lr=True)
    return found


def test_markdown__cells(table: Table) -> None:
    lines = markdown(table).splitlines()
    assert_names(lines[0], "demo", "reset=domain", "order=shuffle", "severity 5", "100 images", "size 50", "weights w")
    assert lines[2] == "| method | gauss | fog | my own | snow | frost | jpeg | bright | contr | mean | Δ source | p |"
    assert lines[3] == "|---|" + "---:|" * 11
    best = " | ".join(f"**{60 + n}.0**" for n in range(8))
    second = " | ".join(["<ins>50.0</ins>"] * 8)
    assert lines[4:7] == [
        f"| source | {second} | <ins>50.00 ±0.00</ins> | baseline |  |",
        f"| t3a | {second} | <ins>50.00 ±0.00</ins> | +0.00 ±0.00 | 1.000 |",
        f"| tent + em (lr 0.01) | {best} | **63.50 ±1.41** | +13.50 ±1.41 | 0.016 |",  # 2 / 2^8, times two
    ]
    command = "`tta -m method=source,tent 'stream.corruptions=[fog,snow]'`"
    assert_names(lines[-1], command, "2026-01-01", "2026-01-02", "torch 2.11.0", "cpu (2 threads)")


def test_notes__say_which_test(table: Table) -> None:
    deviation, test = notes(table)
    assert_names(deviation, "±")
    assert_names(test, "Δ", "source", "Wilcoxon", "two-sided", "8 domains", "Holm", "2 comparisons")
    table.test = "t"
    assert "Wilcoxon" not in notes(table)[1]
    assert_names(notes(table)[1], "t test", "two-sided", "normal")


def test_notes__few_domains_have_a_least_p_or_none(tmp_path: Path) -> None:
    for name in ("source", "t3a"):
        write_run(tmp_path / name, name, 0, dict.fromkeys(NAMES[:5], 0.5))
    (found,) = tables(find_runs([tmp_path]))
    assert_names(notes(found)[0], "5 domains", "0.062")
    for name in ("source", "t3a"):
        write_run(tmp_path / "one" / name, name, 0, {"fog": 0.5})
    (found,) = tables(find_runs([tmp_path / "one"]))
    assert "Wilcoxon" not in notes(found)[0]
    assert found.differences["t3a"].p is None


def test_std__deviations_of_domains_on_demand(table: Table) -> None:
    assert "| **60.0 ±1.4** |" in markdown(table, std=True)
    assert r"\textbf{60.0 $\pm$1.4}" in latex(table, std=True)


def test_labels_used__marked_wherever_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "source", 0, dict.fromkeys(NAMES, 0.5))
    write_run(
        tmp_path / "b", "tent", 0, dict.fromkeys(NAMES, 0.6), config={"uses_labels": {"study": "s", "share": 0.2}}
    )
    (found,) = tables(find_runs([tmp_path]), baseline="tent + em (lr 0.01)")
    assert found.baseline is not None
    assert found.baseline.label == "tent + em‡ (lr 0.01)"
    text = markdown(found)
    assert "| tent + em‡ (lr 0.01) |" in text
    assert any(line.startswith("‡") and "labels" in line for line in text.splitlines())
    assert r"tent + em$^\ddagger$ (lr 0.01)" in latex(found)
    assert "‡" not in markdown(tables(find_runs([tmp_path / "a"]))[0])


def test_markdown__rates_have_a_table_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "s", "source", 0, dict.fromkeys(NAMES, 0.5))
    text = markdown(rates(tmp_path))
    assert "| tent + em (lr 0.01)† |" in text
    assert any(line.startswith("†") and "up to 3" in line for line in text.splitlines())
    assert "source (1)" in text  # the seed that it lacks
    assert "| 0.001 | 0.01 | 0.1 |\n|---|---:|---:|---:|---:|\n" in text
    assert "| source | 50.00 |  |  |  |\n" in text
    assert "| tent + em |  | 60.00 ±0.00 | **80.00 ±0.00** | <ins>70.00 ±0.00</ins> |\n" in text


def test_places__same_reading_same_place(tmp_path: Path) -> None:
    for name, accuracy in (("source", 0.5), ("t3a", 0.70001), ("lame", 0.70004), ("bn_adapt", 0.699)):
        write_run(tmp_path / name, name, 0, {"fog": accuracy})
    (found,) = tables(find_runs([tmp_path]))
    (fog,) = domain_columns(found)
    places = {row.label: cell.place for row, cell in zip(found.rows, fog.cells, strict=True)}
    assert places == {"source": 0, "t3a": 1, "lame": 1, "bn_adapt": 0}  # the third is no second


def test_places__one_row_is_neither_best_nor_second(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "source", 0, {"fog": 0.5})
    (found,) = tables(find_runs([tmp_path]))
    assert "| source | 50.0 | 50.00 |\n" in markdown(found)


def test_csv__values(table: Table) -> None:
    rows = list(csv.DictReader(wide_csv(table).splitlines()))
    assert [row["method"] for row in rows] == ["source", "t3a", "tent + em"]
    assert rows[2]["lr"] == "0.01"
    assert float(rows[2]["gaussian_noise"]) == pytest.approx(60)
    assert float(rows[2]["gaussian_noise std"]) == pytest.approx(1.41421)
    assert float(rows[2]["difference"]) == pytest.approx(13.5)
    assert float(rows[2]["p"]) == pytest.approx(2**-7)
    assert float(rows[2]["p_holm"]) == pytest.approx(2**-6)
    assert (rows[2]["domains better"], rows[2]["domains worse"], rows[2]["test"]) == ("8", "0", "wilcoxon")
    assert (rows[0]["baseline"], rows[0]["difference"], rows[0]["p"]) == ("source", "", "")
    assert float(rows[2]["seconds per image"]) == pytest.approx(0.02)
    lines = list(csv.DictReader(long_csv(table).splitlines()))
    assert len(lines) == 6 * 8
    assert lines[-1]["domain"] == "contrast"
    assert (lines[-1]["seed"], lines[-1]["severity"], lines[-1]["n"]) == ("1", "5", "100")
    assert float(lines[-1]["accuracy"]) == pytest.approx(0.66)
    assert Path(lines[-1]["run"]).name == "e1"


def test_escape_latex__special_characters() -> None:
    assert escape_latex("a_b & 5% #1 $x {y} ~ ^ \\") == (
        r"a\_b \& 5\% \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape_latex("<0.001") == r"\textless{}0.001"
    assert escape_latex("-1.20 ±0.10†") == r"$-$1.20 $\pm$0.10$^\dagger$"
    assert escape_latex("Δ bn_adapt") == r"$\Delta$ bn\_adapt"
    assert escape_latex("lr 1e-05, x-ray") == "lr 1e-05, x-ray"
    assert escape_latex("猫") == "?"


def test_latex__cells_are_escaped(table: Table) -> None:
    table.warnings.append("100 % of\nit")
    text = latex(table, warnings=["more"], name="comparison-2")
    code = [line for line in text.splitlines() if not line.startswith("%")]
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert any("100 % of it" in line for line in comments)
    assert any("more" in line for line in comments)
    assert r"\label{tab:comparison-2}" in code
    assert r"\begin{tabular}{lrrrrrrrrrrr}" in code
    (row,) = (line for line in code if line.startswith("tent"))
    assert row.count("&") == 11
    assert row.startswith(r"tent + em (lr 0.01) & \textbf{60.0} & ")
    assert row.endswith(r"\textbf{63.50 $\pm$1.41} & +13.50 $\pm$1.41 & 0.016 \\")
    assert [line for line in code if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert text.isascii()
    for line in code:  # every special character is a command's or is escaped
        assert not re.search(r"(?<!\\)([_#~]|%(?!$))", line), line


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex")
def test_latex__compiles(table: Table, tmp_path: Path) -> None:
    (tmp_path / "t.tex").write_text(latex(table))
    document = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{t.tex}\end{document}"
    (tmp_path / "d.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "d.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "not found" in done.stdout and ".sty" in done.stdout:
        pytest.skip("pdflatex is there, booktabs or graphicx is not")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_terminal__narrow_has_blocks_wide_has_one(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    show(table, Console(width=150))
    lines = capsys.readouterr().out.splitlines()
    (head,) = (line for line in lines if line.startswith("method"))
    assert head.split() == ["method", "gauss", "fog", "my", "own", "snow", "frost", "jpeg", "bright", "contr", "seeds",
                            "mean", "Δ", "source", "p"]  # fmt: skip
    show(table, Console(width=60))
    text = capsys.readouterr().out
    heads = [line.split() for line in text.splitlines() if line.startswith("method")]
    assert heads[0] == ["method", "seeds", "mean", "Δ", "source", "p"]
    assert [" ".join(head) for head in heads[1:]] == ["method gauss fog my own snow frost", "method jpeg bright contr"]
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("67.0") == 1
    show(table, Console(width=24))  # too narrow for anything, but no domain is left out
    text = capsys.readouterr().out
    heads = [line.split() for line in text.splitlines() if line.startswith("method")]
    columns = " ".join(word for head in heads for word in head[1:])
    assert columns == "seeds mean Δ source p gauss fog my own snow frost jpeg bright contr"  # with labels, each of them
    assert "…" not in text


def test_terminal__best_is_bold_second_underlined(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    show(table, Console(width=150, force_terminal=True, color_system="standard"))
    text = capsys.readouterr().out
    assert "\x1b[1m63.50 ±1.41" in text
    assert "\x1b[4m50.00 ±0.00" in text


def test_terminal__many_rows_have_their_means_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(61):
        write_run(tmp_path / f"{number}", "tent", 0, {"fog": 0.5}, lr=0.001 * (number + 1))
    (found,) = tables(find_runs([tmp_path]))
    show(found, Console(width=150))
    text = capsys.readouterr().out
    assert "fog" not in text
    assert "tent + em (lr 0.061)" in text
