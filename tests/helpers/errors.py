"""Assertions about errors: their type and what they name, never how they are worded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def raises_naming(kind: type[BaseException], *named: object) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect an exception of this type whose message contains each of ``named``: a key, a value, a path."""
    with pytest.raises(kind) as caught:
        yield caught
    assert_names(str(caught.value), *named)


def assert_names(text: str, *named: object) -> None:
    """Assert that a message contains each of ``named``."""
    missing = [str(name) for name in named if str(name) not in text]
    assert not missing, f"{missing} not named in: {text}"
