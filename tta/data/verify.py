"""Whether a data set that is there is complete."""

from __future__ import annotations

from pathlib import Path

from tta.data.catalogue import DataSet, File, find
from tta.data.download import check_md5, part_path
from tta.data.obtain import Say
from tta.data.progress import in_bytes

SHOWN = 10  # problems of a part that are told one by one


def verify(name: str, root: str | Path, parts: str | None = None, say: Say = print) -> bool:
    """Check a data set: its files and their shapes, and the checksum of archives beside it.

    Args:
        name: see ``tta.data.catalogue``.
        root: as for ``get``.
        parts: see ``DataSet.choose``.
        say: told what is missing or wrong.

    Returns:
        Whether all is right.

    Raises:
        ValueError: for an unknown name or part.
    """
    dataset = find(name)
    chosen = dataset.choose(parts)
    folder = _folder(dataset, Path(root).expanduser().resolve())
    found = {part.name: list(part.layout.problems(folder, deep=True)) for part in chosen} if folder.is_dir() else {}
    if not found:
        say(f"there is no folder {folder}")
    for part, problems in found.items():
        say(f"{part}: {f'{len(problems)} problem(s)' if problems else 'complete'} in {folder}")
        for problem in problems[:SHOWN]:
            say(f"  {problem}")
        if len(problems) > SHOWN:
            say(f"  and {len(problems) - SHOWN} more")
    archives = [_archive(file, folder.with_name(file.name), say) for part in chosen for file in part.files]
    return bool(found) and not any(found.values()) and all(archives)


def _folder(dataset: DataSet, root: Path) -> Path:
    """Where the data set is, or a piece of it: also a root that lacks most of it, and has another name."""
    place = dataset.place(root)
    if place.is_dir():
        return place
    here = any(
        list(p.layout.problems(root, deep=False)) != list(p.layout.problems(place, deep=False)) for p in dataset.parts
    )
    return root if here else place


def _archive(file: File, path: Path, say: Say) -> bool:
    """Check an archive if it is there; say so if it is on its way."""
    part = part_path(path)
    if part.is_file():
        say(f"{part}: {in_bytes(part.stat().st_size)} of a download that is not finished")
    if not file.packed or not path.is_file():
        return True
    try:
        md5 = check_md5(file, path)
    except OSError as error:
        say(str(error))
        return False
    say(f"{path}: md5 {md5}, {'as published' if file.md5 else 'none is published to compare it with'}")
    return True
