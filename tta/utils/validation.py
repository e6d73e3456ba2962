"""Checks of values, and files, that a user gives."""

from __future__ import annotations

import math
from typing import Any

WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml")


class ComponentError(TypeError):
    """A part, which may be one of the user's own, is or gives something else than it must; the message says it all."""


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins so is a web page, as a failed download leaves under another name.

    Not any that begins with ``<``: the binary header of a ``.safetensors`` file can.
    """
    return head.lstrip().lower().startswith(WEB_PAGE)


def check_bool(name: str, value: Any) -> bool:
    """Return ``value`` if it is true or false, else raise ``ValueError`` that says so."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def check_int(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return ``value`` if it is a whole number in that range, else raise ``ValueError`` as above."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        expected = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {expected}, got {value!r}")
    return value


def check_float(name: str, value: Any, least: float, most: float = math.inf) -> float:
    """Return ``value`` if it is a number in that range, else raise ``ValueError`` as above."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        expected = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} must be a number {expected}, got {value!r}")
    return value


def check_fraction(name: str, value: Any) -> float:
    """Return ``value`` if it is a number above 0 and below 1, else raise ``ValueError`` as above."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{name} must be a number above 0 and below 1, got {value!r}")
    return value
