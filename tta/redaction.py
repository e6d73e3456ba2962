"""Secrets that a user may type, kept out of whatever is shown or written down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"

_NAME = r"(?:api_?key|key|token|password|passwd|secret|signature|sig|credentials?)"
_SECRET = re.compile(rf"(?:^|[._-]){_NAME}$", re.IGNORECASE)
# One slash is what is left of two in an address that was taken for a path.
_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2})[^/?#\s]+@", re.IGNORECASE)
_QUERY = re.compile(rf"([?&](?:[^=&#\s]*[._-])?{_NAME}=)[^&#\s]+", re.IGNORECASE)
_WORD = re.compile(r"([^=\s]+)=(.+)", re.DOTALL)
_WITHIN = re.compile(rf"([{{,]\s*['\"]?(?:\w+[._-])?{_NAME}['\"]?\s*:\s*)[^,}}\]]+", re.IGNORECASE)


def hide(text: str) -> str:
    """Hide logins and tokens of the addresses in a text: ``https://me:pw@host/x?token=y`` is ``https://***@host/...``."""
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _LOGIN.sub(rf"\g<1>{HIDDEN}@", text))


def hide_in_words(words: Sequence[str]) -> list[str]:
    """Hide them in the words of a command, and the values of keys that are secret by their name, as ``api_key=...``."""
    return [_word(word) for word in words]


def hide_in_values(node: Any, name: str = "") -> Any:
    """Hide them in plain containers: in every text, and wholly where its key is secret by its name."""
    if isinstance(node, Mapping):
        return {key: hide_in_values(value, str(key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [hide_in_values(value, name) for value in node]
    if isinstance(node, str):
        return HIDDEN if node and _SECRET.search(name) else hide(node)
    return node


def _word(word: str) -> str:
    assigned = _WORD.fullmatch(word)
    if assigned and _SECRET.search(assigned[1]):
        return f"{assigned[1]}={HIDDEN}"
    return _WITHIN.sub(rf"\g<1>{HIDDEN}", hide(word))
