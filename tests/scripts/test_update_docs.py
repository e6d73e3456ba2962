"""What goes from runs into the documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.scripts import load_script

update_docs = load_script("update_docs")


def test_update_docs__leaves_out_places_of_files() -> None:
    text = (
        "| a/b | 1 |\n\nRuns: `tta -m stream.root=/my/data 'stream.corruptions=[fog]' runs_dir=runs/x`, "
        "`tta -m stream.root=../data 'stream.corruptions=[fog]' runs_dir=runs/x`, `tta a=./b.pt`; 2026-01-01; cpu.\n"
    )
    assert update_docs.without_places(text) == (
        "| a/b | 1 |\n\nRuns: `tta -m stream.root=data 'stream.corruptions=[fog]' runs_dir=runs/x`, `tta a=b.pt`; "
        "2026-01-01; cpu.\n"
    )


def test_update_docs__fills_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last table of a comparison goes wherever a page asks for it, and the figures that pages show to docs/."""
    monkeypatch.setattr(update_docs, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "runs").mkdir()
    old = "A\n<!-- table:a -->\n| 1 |\n<!-- /table -->\n<!-- table:b -->\n| 1 |\n<!-- /table -->\n"
    comparison = "A.\n\n| all |\n|---|\n| 1 |\n\nBy rate.\n\n| rate |\n|---|\n| 2 |\n\nRuns.\n"
    (tmp_path / "README.md").write_text(old)
    (tmp_path / "docs" / "page.md").write_text(old + "![rates](a-lr.png)\n")
    (tmp_path / "runs" / "comparison.md").write_text(comparison)
    for figure in ("", "-lr"):
        (tmp_path / "runs" / f"comparison{figure}.png").write_bytes(figure.encode())
    update_docs.update("a", tmp_path / "runs")
    new = old.replace("a -->\n| 1 |", "a -->\n| rate |\n|---|\n| 2 |")
    assert (tmp_path / "README.md").read_text() == new
    assert (tmp_path / "docs" / "page.md").read_text() == new + "![rates](a-lr.png)\n"
    assert (tmp_path / "docs" / "a.md").read_text() == comparison
    assert [path.name for path in (tmp_path / "docs").glob("*.png")] == ["a-lr.png"]
