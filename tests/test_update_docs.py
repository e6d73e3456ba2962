"""What goes from runs into the documents."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from update_docs import without_places


def test_commands_lose_the_places_of_files_and_are_named_once() -> None:
    text = (
        "| a/b | 1 |\n\nRuns: `tta -m stream.root=/my/data 'stream.corruptions=[fog]' runs_dir=runs/x`, "
        "`tta -m stream.root=../data 'stream.corruptions=[fog]' runs_dir=runs/x`, `tta a=./b.pt`; 2026-01-01; cpu.\n"
    )
    assert without_places(text) == (
        "| a/b | 1 |\n\nRuns: `tta -m stream.root=data 'stream.corruptions=[fog]' runs_dir=runs/x`, `tta a=b.pt`; "
        "2026-01-01; cpu.\n"
    )
