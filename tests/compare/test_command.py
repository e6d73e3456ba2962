from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.written_runs import write_run, write_visits
from tta.compare import main

FOG = {"fog": 0.5, "snow": 0.7}
FILES = ["comparison-long.csv", "comparison.csv", "comparison.md", "comparison.tex"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "a", "source", 0, FOG)
    write_run(tmp_path / "b", "tent", 0, {"fog": 0.6, "snow": 0.6})
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_tables_go_beside_the_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs)])
    assert files(runs) == FILES
    assert "| fog |" in (runs / "comparison.md").read_text().replace("| method ", "")
    said = capsys.readouterr().out
    assert "comparison.md, comparison.tex, comparison.csv, comparison-long.csv" in said
    assert "--figures adds figures, --html a page" in said


def test_of_a_run_given_by_itself_the_files_go_beside_it(runs: Path) -> None:
    main([str(runs / "a"), str(runs / "b")])
    assert files(runs) == FILES


def test_unfinished_runs_are_counted_and_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "cd":
        (write_run(runs / name, "t3a", 0, FOG) / "summary.json").unlink()
    (write_run(runs / "e", "t3a", 0, FOG) / "summary.json").write_text("{")
    main([str(runs), "--out", str(runs / "new" / "folder")])
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: 2 runs are unfinished and left out: c, d" in said
    assert "summary.json cannot be read: not JSON" in said
    text = (runs / "new" / "folder" / "comparison.md").read_text()
    assert "**Warning:** 2 runs are unfinished and left out: c, d." in text


def test_runs_that_cannot_be_compared_have_files_of_their_own(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "c", "tent", 0, FOG, stream={"batch_size": 10})
    main([str(runs), "--out", str(runs / "out"), "--html"])
    assert sorted(path.name for path in (runs / "out").glob("*.md")) == ["comparison-1.md", "comparison-2.md"]
    said = " ".join(capsys.readouterr().out.split())
    told = "rows of different tables cannot be compared: table 1: batch size 50; table 2: batch size 10"
    assert f"warning: {told}" in said
    assert told in (runs / "out" / "comparison-2.md").read_text()
    assert told in (runs / "out" / "comparison.html").read_text()
    assert r"\label{tab:comparison-2}" in (runs / "out" / "comparison-2.tex").read_text()


def test_options_reach_the_table(runs: Path) -> None:
    write_run(runs / "c", "tent", 0, {"fog": 0.8, "snow": 0.8}, lr=0.1)
    main([str(runs), "--select", "best-lr", "--baseline", "tent", "--test", "t"])
    text = (runs / "comparison.md").read_text()
    assert "Δ tent + em (lr 0.1)†" in text
    assert "paired t test" in text
    assert "(lr 0.01)" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder .*nowhere"),
        (["empty"], r"no finished run \(a folder with summary.json\) in "),
        ([".", "--baseline", "tnt"], r"--baseline 'tnt' is not among the rows; there are 'source', 'tent \+ em"),
        ([".", "--out", "a/summary.json/x"], "--out: .* cannot be written .*; choose another with --out FOLDER"),
    ],
)
def test_errors_say_what_is_wrong(runs: Path, words: list[str], message: str) -> None:
    (runs / "empty").mkdir()
    place, *options = words
    options = [str(runs / word) if "/" in word else word for word in options]
    with pytest.raises(SystemExit, match=f"^tta-compare: error: {message}"):
        main([str(runs / place), *options])


def test_figures_need_the_rows_of_the_batches(runs: Path) -> None:
    (runs / "a" / "batches.csv").unlink()
    main([str(runs)])
    with pytest.raises(
        SystemExit, match=r"error: .*a/batches.csv is needed for figures and cannot be read .* without --figures"
    ):
        main([str(runs), "--figures"])


def test_figures_are_png_and_svg(runs: Path) -> None:
    main([str(runs), "--figures"])
    names = ["comparison", "comparison-classes", "comparison-cost", "comparison-domains"]
    assert [name for name in files(runs) if name.endswith(".png")] == sorted(f"{name}.png" for name in names)
    for name in names:
        assert (runs / f"{name}.svg").read_text().startswith("<?xml")
        with Image.open(runs / f"{name}.png") as image:
            assert image.size[0] > 1000
    assert ">tent + em (lr 0.01)<" in (runs / "comparison.svg").read_text()  # text is text
    write_run(runs / "c", "tent", 0, FOG, lr=0.1)
    main([str(runs), "--figures"])
    assert (runs / "comparison-lr.png").is_file()


def test_the_same_runs_give_the_same_files(runs: Path) -> None:
    for folder in ("one", "two"):
        main([str(runs / "a"), str(runs / "b"), "--out", str(runs / folder), "--figures", "--html"])
    for name in files(runs / "one"):
        assert (runs / "one" / name).read_bytes() == (runs / "two" / name).read_bytes(), name


def test_many_visits_are_drawn(tmp_path: Path) -> None:
    write_visits(tmp_path / "a", [(name, 5, visit, 0.5) for visit in range(1, 31) for name in ("fog", "snow")])
    main([str(tmp_path), "--figures"])
    assert ">visit 30<" in (tmp_path / "comparison.svg").read_text()


def test_help_names_every_option_and_loads_little() -> None:
    code = (
        "import atexit, sys; from tta.compare import main; atexit.register(lambda: print(*sys.modules)); main(['-h'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    text, modules = said[: said.index("sys builtins")], said[said.index("sys builtins") :].split()
    assert not {"torch", "pandas", "scipy", "matplotlib", "plotly"} & set(modules)
    for word in ("--out", "--baseline", "--select", "--test", "--std", "--figures", "--html"):
        assert word in text
