"""Fixtures of the tests of the search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event


@pytest.fixture(autouse=True, scope="module")
def quick_commits() -> Iterator[None]:
    """Let SQLite not wait for the disk, which guards against a failure of the machine, not of a process."""

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)
