"""Fixtures of tests of caches: a small data set in files, and a folder for its cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import small_tree


@pytest.fixture
def small_files(tmp_path: Path) -> Path:
    """Nine small images under fog and nine under snow, in the layout of ImageNet-C."""
    return small_tree.tree(tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for caches, not there yet."""
    return tmp_path / "cache"
