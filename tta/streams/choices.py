"""Reading of ``stream.corruptions`` and ``stream.severity``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from tta.checks import whole_number
from tta.corruptions import BENCHMARK, CORRUPTIONS

GROUPS = {"benchmark": BENCHMARK, "extra": CORRUPTIONS[len(BENCHMARK) :], "all": CORRUPTIONS}


def choose_corruptions(corruptions: str | Iterable[str]) -> list[str]:
    """Expand ``benchmark`` (the 15), ``extra`` (the 4 meant for validation), ``all``, one name, or a list of names.

    Raises:
        ValueError: for an unknown name, or one named twice.
    """
    if isinstance(corruptions, str):
        corruptions = GROUPS.get(corruptions, (corruptions,))
    if not isinstance(corruptions, Iterable):
        raise ValueError(f"stream.corruptions must be a name or a list of names, got {corruptions!r}")
    names = list(corruptions)
    for name in names:
        if name not in CORRUPTIONS:
            close = difflib.get_close_matches(str(name), CORRUPTIONS, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ValueError(
                f"stream.corruptions: there is no corruption {name!r}{hint} Choose from: {', '.join(CORRUPTIONS)}, "
                f"or, instead of a list, one of the groups {', '.join(GROUPS)}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"stream.corruptions names a corruption twice: {', '.join(names)}")
    return names


def choose_severities(severity: int | Sequence[int]) -> list[int]:
    """Read one severity, or those that follow one another within each corruption, e.g. 1, 2, 3, 2, 1.

    Raises:
        ValueError: for one outside 1 to 5, or none.
    """
    if not isinstance(severity, list | tuple):
        return [whole_number("stream.severity", severity, 1, 5)]
    if not severity:
        raise ValueError("stream.severity is an empty list: give a number from 1 to 5, or several")
    return [whole_number("each of stream.severity", value, 1, 5) for value in severity]
