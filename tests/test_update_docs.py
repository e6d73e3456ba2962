"""What goes from runs into the documents."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
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
