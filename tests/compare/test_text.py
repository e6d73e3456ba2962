from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

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


def test_markdown(table: Table) -> None:
    lines = markdown(table).splitlines()
    assert lines[0].startswith("demo, single_domain (reset=domain, order=shuffle), demo: online accuracy in per cent; ")
    assert lines[0].endswith("severity 5, 100 images per domain, batch size 50, weights w.")
    assert lines[2] == "| method | gauss | fog | my own | snow | frost | jpeg | bright | contr | mean | Δ source | p |"
    assert lines[3] == "|---|" + "---:|" * 11
    best = " | ".join(f"**{60 + n}.0**" for n in range(8))
    second = " | ".join(["<ins>50.0</ins>"] * 8)
    assert lines[4:7] == [
        f"| source | {second} | <ins>50.00 ±0.00</ins> | baseline |  |",
        f"| t3a | {second} | <ins>50.00 ±0.00</ins> | +0.00 ±0.00 | 1.000 |",
        f"| tent + em (lr 0.01) | {best} | **63.50 ±1.41** | +13.50 ±1.41 | 0.016 |",  # 2 / 2^8, times two
    ]
    assert lines[-1] == (
        "Runs: `tta -m method=source,tent 'stream.corruptions=[fog,snow]'`; 2026-01-01, 2026-01-02; torch 2.11.0; "
        "cpu (2 threads)."
    )


def test_notes_say_which_test(table: Table) -> None:
    assert notes(table) == [
        "± is the standard deviation over seeds.",
        "Δ is the accuracy less that of source, paired over seeds and domains. p: Wilcoxon signed-rank test, "
        "two-sided, "
        "over the 8 domains, of differences averaged over seeds (seeds share their images, and are no independent "
        "samples), corrected after Holm for 2 comparisons.",
    ]
    table.test = "t"
    assert "paired t test, two-sided" in notes(table)[1]
    assert notes(table)[1].endswith("It takes the differences for normal.")


def test_few_domains_are_told_to_be_few(tmp_path: Path) -> None:
    for name in ("source", "t3a"):
        write_run(tmp_path / name, name, 0, dict.fromkeys(NAMES[:5], 0.5))
    (found,) = tables(find_runs([tmp_path]))
    assert notes(found)[0].endswith("for 1 comparison. With 5 domains this p is at least 0.062 before the correction.")
    for name in ("source", "t3a"):
        write_run(tmp_path / "one" / name, name, 0, {"fog": 0.5})
    (found,) = tables(find_runs([tmp_path / "one"]))
    assert notes(found)[0].endswith("one domain is too few for a test over domains, so there is no p.")
    assert found.differences["t3a"].p is None


def test_deviations_of_domains_on_demand(table: Table) -> None:
    assert "| **60.0 ±1.4** |" in markdown(table, std=True)
    assert r"\textbf{60.0 $\pm$1.4}" in latex(table, std=True)


def test_what_was_chosen_with_labels_is_marked_wherever_it_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "source", 0, dict.fromkeys(NAMES, 0.5))
    write_run(
        tmp_path / "b", "tent", 0, dict.fromkeys(NAMES, 0.6), config={"uses_labels": {"study": "s", "share": 0.2}}
    )
    (found,) = tables(find_runs([tmp_path]), baseline="tent + em (lr 0.01)")
    assert found.baseline is not None
    assert found.baseline.label == "tent + em‡ (lr 0.01)"
    text = markdown(found)
    assert "| tent + em‡ (lr 0.01) |" in text
    assert "‡ options were chosen with labels of the test stream: an upper bound" in text
    assert r"tent + em$^\ddagger$ (lr 0.01)" in latex(found)
    assert "‡" not in markdown(tables(find_runs([tmp_path / "a"]))[0])


def test_learning_rates_have_a_table_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "s", "source", 0, dict.fromkeys(NAMES, 0.5))
    text = markdown(rates(tmp_path))
    assert "| tent + em (lr 0.01)† |" in text
    assert "† learning rate chosen on the test stream, the best of up to 3 by the mean" in text
    assert "**Warning:** incomplete, seeds missing: source (1)." in text
    assert text.endswith(
        "| method | no learning rate | 0.001 | 0.01 | 0.1 |\n|---|---:|---:|---:|---:|\n"
        "| source | 50.00 |  |  |  |\n"
        "| tent + em |  | 60.00 ±0.00 | **80.00 ±0.00** | <ins>70.00 ±0.00</ins> |\n\n" + text.splitlines()[-1] + "\n"
    )


def test_what_reads_the_same_shares_its_place(tmp_path: Path) -> None:
    for name, accuracy in (("source", 0.5), ("t3a", 0.70001), ("lame", 0.70004), ("bn_adapt", 0.699)):
        write_run(tmp_path / name, name, 0, {"fog": accuracy})
    (found,) = tables(find_runs([tmp_path]))
    (fog,) = domain_columns(found)
    places = {row.label: cell.place for row, cell in zip(found.rows, fog.cells, strict=True)}
    assert places == {"source": 0, "t3a": 1, "lame": 1, "bn_adapt": 0}  # the third is no second


def test_one_row_is_neither_best_nor_second(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "source", 0, {"fog": 0.5})
    (found,) = tables(find_runs([tmp_path]))
    assert "| source | 50.0 | 50.00 |\n" in markdown(found)


def test_csv(table: Table) -> None:
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


def test_what_latex_takes_for_a_command_is_escaped() -> None:
    assert escape_latex("a_b & 5% #1 $x {y} ~ ^ \\") == (
        r"a\_b \& 5\% \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape_latex("<0.001") == r"\textless{}0.001"
    assert escape_latex("-1.20 ±0.10†") == r"$-$1.20 $\pm$0.10$^\dagger$"
    assert escape_latex("Δ bn_adapt") == r"$\Delta$ bn\_adapt"
    assert escape_latex("lr 1e-05, x-ray") == "lr 1e-05, x-ray"
    assert escape_latex("猫") == "?"


def test_latex(table: Table) -> None:
    table.warnings.append("100 % of\nit")
    text = latex(table, warnings=["more"], name="comparison-2")
    code = [line for line in text.splitlines() if not line.startswith("%")]
    assert "% Warning: 100 % of it." in text
    assert "% Warning: more." in text
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


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex")
def test_latex_compiles(table: Table, tmp_path: Path) -> None:
    (tmp_path / "t.tex").write_text(latex(table))
    document = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{t.tex}\end{document}"
    (tmp_path / "d.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "d.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "not found" in done.stdout and ".sty" in done.stdout:
        pytest.skip("pdflatex is there, booktabs or graphicx is not")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_a_narrow_terminal_has_blocks_and_a_wide_one_has_one(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_best_is_bold_and_the_second_underlined_in_the_terminal(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    show(table, Console(width=150, force_terminal=True, color_system="standard"))
    text = capsys.readouterr().out
    assert "\x1b[1m63.50 ±1.41" in text
    assert "\x1b[4m50.00 ±0.00" in text


def test_many_rows_have_their_means_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(61):
        write_run(tmp_path / f"{number}", "tent", 0, {"fog": 0.5}, lr=0.001 * (number + 1))
    (found,) = tables(find_runs([tmp_path]))
    show(found, Console(width=150))
    text = capsys.readouterr().out
    assert "fog" not in text
    assert "tent + em (lr 0.061)" in text
    assert "More rows than the terminal shows by domain" in text
