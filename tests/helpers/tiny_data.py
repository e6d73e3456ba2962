"""A small data set to fetch; as a program, ``tta-data`` that knows it: URL SIZE MD5 [--slow-unpacking] ARGUMENTS."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tta.data import catalogue
from tta.data.catalogue import DataSet, File, Part
from tta.data.cli import main
from tta.data.layouts import Arrays

LAYOUT = Arrays(("fog.npy", "snow.npy"), "labels.npy", (20, 32, 32, 3), 10)


def contents() -> dict[str, bytes]:
    """The files, by their names."""
    generator = np.random.default_rng(0)
    arrays = {name: generator.integers(0, 256, LAYOUT.shape, np.uint8) for name in LAYOUT.images}
    return {name: npy(array) for name, array in {**arrays, "labels.npy": np.arange(20, dtype=np.uint8) % 10}.items()}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(members: dict[str, bytes] | None = None, folder: str = "TINY-C/", mode: str = "w") -> bytes:
    """A tar archive of files; by default, of the data set."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in (contents() if members is None else members).items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def dataset(url: str, size: int | None = None, md5: str | None = None, name: str = "TINY-C.tar") -> DataSet:
    return DataSet("tiny", "Tiny", "TINY-C", (Part("tiny", (File(name, url, size, md5),), LAYOUT),))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


TAR = archive()
MD5 = md5(TAR)


class Said(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)

    def __str__(self) -> str:
        return "\n".join(self)


def complete(root: Path) -> bool:
    """Whether the data set is there, byte for byte, and nothing else but the lock."""
    made = {file.name: file.read_bytes() for file in (root / "TINY-C").iterdir()}
    return made == contents() and left(root) == {"TINY-C"}


def left(root: Path) -> set[str]:
    return {file.name for file in root.iterdir()} - {".TINY-C.lock"}


def _slow_unpacking() -> None:
    extract = tarfile.TarFile.extract

    def slowly(*arguments: Any, **options: Any) -> None:
        extract(*arguments, **options)
        time.sleep(60)

    tarfile.TarFile.extract = slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    url, size, digest, *arguments = sys.argv[1:]
    if "--slow-unpacking" in arguments:
        arguments.remove("--slow-unpacking")
        _slow_unpacking()
    catalogue.DATASETS["tiny"] = dataset(url, int(size), digest)
    main(arguments)
