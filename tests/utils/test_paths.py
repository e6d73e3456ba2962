"""Where files are kept, and how they are written: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tta.utils.paths import atomic_file, cache_dir


def test_cache_dir__follows_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TTA_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TTA_CACHE", "~/kept")
    assert cache_dir() == tmp_path / "home" / "kept"


@pytest.mark.parametrize("value", [None, ""])
def test_cache_dir__is_in_the_home_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("TTA_CACHE", raising=False)
    else:
        monkeypatch.setenv("TTA_CACHE", value)
    assert cache_dir() == tmp_path / ".cache" / "tta"


def test_atomic_file__appears_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "data.npy"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == ".npy"  # some writers add it where it is missing
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_file__is_readable_by_others(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "data") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("error", "before"), [(RuntimeError, "old"), (KeyboardInterrupt, None)])
def test_atomic_file__failure_changes_nothing(tmp_path: Path, error: type[BaseException], before: str | None) -> None:
    path = tmp_path / "data"
    if before is not None:
        path.write_text(before)

    def write_half() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_atomic_file__keeps_the_last_of_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the last to finish
    assert list(tmp_path.iterdir()) == [path]
