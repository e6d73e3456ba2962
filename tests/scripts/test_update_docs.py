"""What goes from runs into the documents."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import update_docs
from update_docs import table, without_places


def test_commands_lose_the_places_of_files_and_are_named_once() -> None:
    text = (
        "| a/b | 1 |\n\nRuns: `tta -m stream.root=/my/data 'stream.corruptions=[fog]' runs_dir=runs/x`, "
        "`tta -m stream.root=../data 'stream.corruptions=[fog]' runs_dir=runs/x`, `tta a=./b.pt`; 2026-01-01; cpu.\n"
    )
    assert without_places(text) == (
        "| a/b | 1 |\n\nRuns: `tta -m stream.root=data 'stream.corruptions=[fog]' runs_dir=runs/x`, `tta a=b.pt`; "
        "2026-01-01; cpu.\n"
    )


def test_the_last_table_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("A.\n\n| all |\n|---|\n| 1 |\n\nBy rate.\n\n| rate |\n|---|\n| 2 |\n\nRuns.\n")
    assert table(tmp_path / "a.md") == "| rate |\n|---|\n| 2 |\n"


def test_a_table_and_its_figures_go_to_every_page_that_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_docs, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "runs").mkdir()
    old = "A\n<!-- table:a -->\n| 1 |\n<!-- /table -->\n<!-- table:b -->\n| 1 |\n<!-- /table -->\n"
    (tmp_path / "README.md").write_text(old)
    (tmp_path / "docs" / "page.md").write_text(old + "![rates](a-lr.png)\n")
    (tmp_path / "runs" / "comparison.md").write_text("A.\n\n| 2 |\n\nRuns.\n")
    for figure in ("", "-lr"):
        (tmp_path / "runs" / f"comparison{figure}.png").write_bytes(figure.encode())
    update_docs.update("a", tmp_path / "runs")
    new = old.replace("a -->\n| 1 |", "a -->\n| 2 |")
    assert (tmp_path / "README.md").read_text() == new
    assert (tmp_path / "docs" / "page.md").read_text() == new + "![rates](a-lr.png)\n"
    assert (tmp_path / "docs" / "a.md").read_text() == "A.\n\n| 2 |\n\nRuns.\n"
    assert [path.name for path in (tmp_path / "docs").glob("*.png")] == ["a-lr.png"]
