"""What a configuration may name as ``_target_``: it is imported and called, whoever wrote the YAML."""

from __future__ import annotations

import pkgutil
import site
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from tta.checks import PartError

LIBRARIES = ("tta.", "torch.optim.")
"""Whose own classes and functions may be called; any other comes by way of a module of the user's own."""


def check_targets(node: Any) -> None:
    """Make sure that nothing is called but what a user imports on purpose.

    Args:
        node: containers, in which ``_target_`` names what to call.

    Raises:
        PartError: if a target is neither of ``LIBRARIES`` nor in a module that is not installed.
    """
    for target in _targets(node):
        if not _may_be_called(target):
            raise PartError(
                f"_target_: {target} is not called: parts come from tta, from torch.optim, or from a module of your "
                f"own. If it is meant, import it in a file of yours, and name it there, as mine.{target.split('.')[-1]}"
            )


def _targets(node: Any) -> Iterator[str]:
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and isinstance(target := node.get("_target_"), str):
        yield target
    for value in values:
        yield from _targets(value)


@cache
def _may_be_called(target: str) -> bool:
    if not (of_library := target.startswith(LIBRARIES)) and not _is_own(target.partition(".")[0]):
        return False  # and not even imported
    path, _, name = target.rpartition(".")
    try:
        holder = pkgutil.resolve_name(path)
        found = getattr(holder, name)
    except Exception:  # whatever the user's module raises: Hydra, which comes next, tells of it
        return True
    # A module also holds what it has imported: tta.runs.subprocess.run, or mine.os.system, is no part of either.
    home = holder.__name__ if isinstance(holder, ModuleType) else holder.__module__
    if of_library:
        return f"{home}.".startswith(LIBRARIES) and f"{found.__module__}.".startswith(LIBRARIES)
    return _is_own(home.partition(".")[0])


@cache
def _is_own(name: str) -> bool:
    """Whether a module is neither Python's nor installed, or is not there at all, which is for others to tell."""
    if name in sys.stdlib_module_names:
        return False
    try:
        spec = find_spec(name)
    except ValueError:  # made by a program, as __main__
        return True
    if spec is None:
        return True
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    installed |= set(site.getsitepackages())
    places = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or ""]]
    return not any(place.is_relative_to(Path(folder).resolve()) for place in places for folder in installed)
