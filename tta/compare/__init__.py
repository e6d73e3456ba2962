"""Finished runs to tables and figures: the command ``tta-compare``."""

from __future__ import annotations

from tta.compare.cli import main
from tta.compare.reading import Run, find_runs
from tta.compare.rows import Row, Table, tables

__all__ = ["Row", "Run", "Table", "find_runs", "main", "tables"]
