"""Reading of ``stream.corruptions``, ``stream.severity`` and ``stream.on_error``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from tta.corruptions import BENCHMARK, CORRUPTIONS
from tta.utils.validation import check_int

GROUPS: Mapping[str, Sequence[str]] = {
    "benchmark": BENCHMARK,
    "extra": CORRUPTIONS[len(BENCHMARK) :],
    "all": CORRUPTIONS,
}


def choose_corruptions(corruptions: str | Iterable[str], groups: Mapping[str, Sequence[str]] = GROUPS) -> list[str]:
    """Expand ``benchmark`` (the 15), ``extra`` (the 4 meant for validation), ``all``, one name, or a list of names.

    Args:
        corruptions: what to expand.
        groups: names of another data set, in groups; ``all`` is all of them.

    Raises:
        ValueError: for an unknown name, or one named twice.
    """
    known = groups["all"]
    if isinstance(corruptions, str):
        corruptions = groups.get(corruptions, (corruptions,))
    if not isinstance(corruptions, Iterable):
        raise ValueError(f"stream.corruptions must be a name or a list of names, got {corruptions!r}")
    names = list(corruptions)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ValueError(
                f"stream.corruptions: there is no corruption {name!r}{hint} Choose from: {', '.join(known)}, "
                f"or, instead of a list, one of the groups {', '.join(groups)}"
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
        return [check_int("stream.severity", severity, 1, 5)]
    if not severity:
        raise ValueError("stream.severity is an empty list: give a number from 1 to 5, or several")
    return [check_int("each of stream.severity", value, 1, 5) for value in severity]


def choose_on_error(on_error: str) -> bool:
    """Whether an image that cannot be read is skipped (``skip``), or stops the run (``stop``).

    Raises:
        ValueError: for anything else.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"stream.on_error must be stop or skip, got {on_error!r}")
    return on_error == "skip"
