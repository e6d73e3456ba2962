from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.errors import assert_names, raises_naming
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


def test_out__tables_go_beside_the_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs)])
    assert files(runs) == FILES
    text = re.sub(r"\*\*|</?ins>", "", (runs / "comparison.md").read_text())
    assert "| source | 50.0 | 70.0 |" in text
    assert_names(capsys.readouterr().out, *FILES, "--figures", "--html")


def test_out__a_run_itself_has_the_files_beside_it(runs: Path) -> None:
    main([str(runs / "a"), str(runs / "b")])
    assert files(runs) == FILES


def test_unfinished__counted_and_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "cd":
        (write_run(runs / name, "t3a", 0, FOG) / "summary.json").unlink()
    (write_run(runs / "e", "t3a", 0, FOG) / "summary.json").write_text("{")
    main([str(runs), "--out", str(runs / "new" / "folder")])
    said = " ".join(capsys.readouterr().out.split())
    for text in (said, (runs / "new" / "folder" / "comparison.md").read_text()):
        assert_names(text, "2 runs", "c, d", "e/summary.json", "JSON")


def test_incomparable_runs__have_files_of_their_own(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "c", "tent", 0, FOG, stream={"batch_size": 10})
    main([str(runs), "--out", str(runs / "out"), "--html"])
    assert sorted(path.name for path in (runs / "out").glob("*.md")) == ["comparison-1.md", "comparison-2.md"]
    told = ("table 1: batch size 50", "table 2: batch size 10")
    assert_names(" ".join(capsys.readouterr().out.split()), *told)
    for name in ("comparison-2.md", "comparison.html"):
        assert_names((runs / "out" / name).read_text(), *told)
    assert r"\label{tab:comparison-2}" in (runs / "out" / "comparison-2.tex").read_text()


def test_options__reach_the_table(runs: Path) -> None:
    write_run(runs / "c", "tent", 0, {"fog": 0.8, "snow": 0.8}, lr=0.1)
    main([str(runs), "--select", "best-lr", "--baseline", "tent", "--test", "t"])
    text = (runs / "comparison.md").read_text()
    assert "Δ tent + em (lr 0.1)†" in text
    assert "t test" in text
    assert "(lr 0.01)" not in text


def test_errors__name_what_is_wrong(runs: Path) -> None:
    (runs / "empty").mkdir()
    with raises_naming(SystemExit, "tta-compare", runs / "nowhere"):
        main([str(runs / "nowhere")])
    with raises_naming(SystemExit, "tta-compare", "summary.json", runs / "empty"):
        main([str(runs / "empty")])
    with raises_naming(SystemExit, "tta-compare", "--baseline", "'tnt'", "'source'", "'tent + em (lr 0.01)'"):
        main([str(runs), "--baseline", "tnt"])
    with raises_naming(SystemExit, "tta-compare", "--out", runs / "a/summary.json/x"):
        main([str(runs), "--out", str(runs / "a/summary.json/x")])


def test_figures__need_the_rows_of_the_batches(runs: Path) -> None:
    (runs / "a" / "batches.csv").unlink()
    main([str(runs)])
    with raises_naming(SystemExit, runs / "a" / "batches.csv", "--figures"):
        main([str(runs), "--figures"])


def test_figures__are_png_and_svg(runs: Path) -> None:
    write_run(runs / "c", "tent", 0, {"fog": 0.5, "snow": 0.6}, lr=0.1)
    main([str(runs), "--figures"])
    names = ["comparison", *(f"comparison-{name}" for name in ("classes", "cost", "domains", "lr"))]
    assert [name for name in files(runs) if name.endswith(".png")] == sorted(f"{name}.png" for name in names)
    for name in names:
        assert (runs / f"{name}.svg").read_text().startswith("<?xml")
        with Image.open(runs / f"{name}.png") as image:
            assert image.size[0] > 1000
    assert ">tent + em (lr 0.01)<" in (runs / "comparison.svg").read_text()  # text is text


@pytest.mark.parametrize("options", [["--html"], pytest.param(["--figures", "--html"], marks=pytest.mark.slow)])
def test_files__same_runs_give_the_same_bytes(runs: Path, options: list[str]) -> None:
    for folder in ("one", "two"):
        main([str(runs / "a"), str(runs / "b"), "--out", str(runs / folder), *options])
    assert len(files(runs / "one")) > len(FILES)
    for name in files(runs / "one"):
        assert (runs / "one" / name).read_bytes() == (runs / "two" / name).read_bytes(), name


@pytest.mark.slow
def test_figures__many_visits_are_drawn(tmp_path: Path) -> None:
    write_visits(tmp_path / "a", [(name, 5, visit, 0.5) for visit in range(1, 31) for name in ("fog", "snow")])
    main([str(tmp_path), "--figures"])
    assert ">visit 30<" in (tmp_path / "comparison.svg").read_text()


def test_help__names_every_option_and_loads_little() -> None:
    code = (
        "import atexit, sys; from tta.compare import main; atexit.register(lambda: print(*sys.modules)); main(['-h'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    text, modules = said[: said.index("sys builtins")], said[said.index("sys builtins") :].split()
    assert not {"torch", "pandas", "scipy", "matplotlib", "plotly"} & set(modules)
    for word in ("--out", "--baseline", "--select", "--test", "--std", "--figures", "--html"):
        assert word in text
