"""Scripts called in this process, which has already imported what takes them seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tta import cli


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call the ``main`` of a script with these words, as a shell does."""

    def call(script: ModuleType, *words: object) -> None:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
        script.main()

    return call


@pytest.fixture
def tta_in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], None]:
    """Have a script's calls of ``python -m tta`` run in this process."""

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "tta"]
        code, error = 0, ""
        with monkeypatch.context() as patch:
            patch.chdir(options.get("cwd") or os.getcwd())
            patch.setattr(sys, "path", [*sys.path])
            patch.setattr(sys, "argv", ["tta", *command[3:]])
            patch.delenv("HYDRA_FULL_ERROR", raising=False)
            try:
                cli.main()
            except SystemExit as end:
                code, error = 1, str(end.code)
        return subprocess.CompletedProcess(list(command), code, "", error)

    return lambda script: monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what scripts cache out of the user's home."""
    monkeypatch.setenv("TTA_CACHE", str(tmp_path / "cache"))
