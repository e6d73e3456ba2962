"""Fixtures of the tests of corruptions."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.published_images import Published


@pytest.fixture(scope="session")
def published(shared: Path) -> Published:
    return Published(shared / "data" / "cifar10-c-200")
