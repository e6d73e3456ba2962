"""Corrupt a clean data set into the official layout of CIFAR-10-C or ImageNet-C.

    python scripts/make_corrupted.py cifar10_test.npz --out CIFAR-10-C --limit 2000 --corruptions fog snow
    python scripts/make_corrupted.py imagenet/val --size 224 --out ImageNet-C --workers 8

An .npz file with `images` uint8 (N, S, S, 3) and `labels` (N,) gives `labels.npy` and a `<corruption>.npy` each, uint8
(5N, S, S, 3), severity s in rows [N(s-1), Ns), as `tta stream=cifar10_c stream.root=OUT` reads them. A folder of
classes gives `<corruption>/<severity>/<class>/<image>.JPEG` of quality 85, for `tta stream=imagenet_c`.

Pixels are those of `tta stream=corrupted`, before JPEG. What is there already is left as it is, so that a run that was
cut off goes on where it stopped; OUT/recipe.json says of what and how it was made, and another recipe is refused.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tta.corruptions import BENCHMARK, CORRUPTIONS, SCALES, choose_scale, recipe_digest
from tta.streams.datasets.corrupted import CorruptedImages
from tta.streams.datasets.labelled_dataset import Labelled, open_labelled
from tta.utils.paths import atomic_file
from tta.utils.validation import check_int

SEVERITIES = range(1, 6)
QUALITY = 85
CHUNK = 32
"""Images that a process corrupts at once."""

Map = Callable[..., Iterator[Any]]


@dataclass(frozen=True)
class Job:
    """What is made of what, and where; the same in every process."""

    source: Path
    out: Path
    seed: int
    scale: int | None
    size: int | None
    limit: int | None
    on_error: str

    @property
    def data(self) -> Labelled:
        """The clean data set."""
        return _open(self.source, self.size, self.on_error)

    @property
    def index(self) -> torch.Tensor:
        """The images that are taken: the first of a file, those of a folder evenly spread over its classes."""
        total = len(self.data.labels)
        count = total if self.limit is None else min(self.limit, total)
        return torch.arange(count) * total // count if self.data.paths else torch.arange(count)

    def corrupted(self, name: str, severity: int) -> CorruptedImages:
        """Make what reads corrupted images."""
        scale = choose_scale(self.data.size, self.scale)
        return CorruptedImages(self.data.load, name, severity, self.seed, scale)

    def recipe(self) -> dict[str, Any]:
        """Say what determines the pixels."""
        scale = choose_scale(self.data.size, self.scale)
        how = {"seed": self.seed, "scale": scale, "size": self.data.size, "cropped": self.size is not None}
        return {"source": self.data.name, "images": len(self.index), **how, "recipe": recipe_digest()}


@cache
def _open(source: Path, size: int | None, on_error: str) -> Labelled:
    return open_labelled(source, size, on_error=on_error)


def main(words: Sequence[str] | None = None) -> None:
    """Write every corruption that is missing."""
    options = _parse(words)
    job = Job(**{name: getattr(options, name) for name in Job.__annotations__})
    try:
        check_int("stream.workers", options.workers, 1)
        if job.limit is not None:
            check_int("stream.limit", job.limit, 1)
        _claim(job)
        with _processes(options.workers) as run:
            (_write_tree if job.data.paths else _write_arrays)(job, options.corruptions, run)
    except (ValueError, OSError) as error:
        words = str(error).replace("stream.source", "SOURCE").replace("stream.", "--")
        raise SystemExit(f"make_corrupted: error: {words}") from None


def _claim(job: Job) -> None:
    """Write the recipe into the folder, or compare it with the one that is there."""
    file, recipe = job.out / "recipe.json", job.recipe()
    if file.is_file():
        there = json.loads(file.read_text())
        other = [
            f"{key} {there.get(key)!r} instead of {recipe[key]!r}" for key in recipe if there.get(key) != recipe[key]
        ]
        if other:
            raise ValueError(f"{job.out} was made with {', '.join(other)}: choose another --out, or delete it")
    elif job.out.exists() and any(not path.name.startswith(".") for path in job.out.iterdir()):
        raise ValueError(f"{job.out} holds files that were not made here: choose another --out")
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(recipe, indent=1) + "\n")


@contextmanager
def _processes(workers: int) -> Iterator[Map]:
    """Give a ``map`` over so many processes, of one thread each; its results come in order."""
    torch.set_num_threads(1)
    if workers == 1:
        yield map
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool.map
        except BaseException:  # Ctrl-C too: what has not begun is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_arrays(job: Job, names: Sequence[str], run: Map) -> None:
    labels = job.data.labels[job.index].repeat(len(SEVERITIES))
    small = labels.to(torch.uint8 if job.data.num_classes <= 256 else torch.int64)
    with atomic_file(job.out / "labels.npy") as temporary:
        np.save(temporary, small.numpy())
    there = [name for name in names if (job.out / f"{name}.npy").is_file()]
    for name in there:
        print(f"{job.out / name}.npy is there already", flush=True)
    missing = [name for name in names if name not in there]
    for file in run(_write_array, [job] * len(missing), missing):
        print(f"written: {file}", flush=True)


def _write_array(job: Job, name: str) -> Path:
    parts = [job.corrupted(name, severity)(job.index).images for severity in SEVERITIES]
    file = job.out / f"{name}.npy"
    with atomic_file(file) as temporary:
        np.save(temporary, torch.cat(parts).permute(0, 2, 3, 1).contiguous().numpy())
    return file


def _write_tree(job: Job, names: Sequence[str], run: Map) -> None:
    places = {(path.parent.name, path.stem) for path in job.data.paths}
    if len(places) < len(job.data.paths):
        raise ValueError(f"{job.source} has images of one class whose names differ in their ending alone: rename them")
    chunks = [chunk.tolist() for chunk in job.index.split(CHUNK)]
    conditions = [(name, severity) for name in names for severity in SEVERITIES]
    tasks = [(name, severity, chunk) for name, severity in conditions for chunk in chunks]
    counts = run(_write_files, [job] * len(tasks), *zip(*tasks, strict=True))
    for name, severity in conditions:
        written, skipped = 0, []
        for _ in chunks:
            count, faults = next(counts)
            written += count
            skipped += faults
        for fault in skipped:
            print(f"left out: {fault}", flush=True)
        folder = job.out / name / str(severity)
        print(f"written: {folder}, {written} images" if written else f"{folder} is there already", flush=True)


def _write_files(job: Job, name: str, severity: int, index: list[int]) -> tuple[int, tuple[str, ...]]:
    files = {sample: _place(job, name, severity, job.data.paths[sample]) for sample in index}
    missing = torch.tensor([sample for sample, file in files.items() if not file.is_file()], dtype=torch.int64)
    if not len(missing):
        return 0, ()
    images, kept, skipped = job.corrupted(name, severity)(missing)
    for sample, pixels in zip(missing[kept].tolist(), images.permute(0, 2, 3, 1).numpy(), strict=True):
        with atomic_file(files[sample]) as temporary:
            Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, "JPEG", quality=QUALITY, optimize=True)
    return len(kept), skipped


def _place(job: Job, name: str, severity: int, path: Path) -> Path:
    return job.out / name / str(severity) / path.parent.name / f"{path.stem}.JPEG"


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="an .npz file of clean images, or a folder of classes"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    parser.add_argument(
        "--limit", type=int, help="so many images: a file's first, a folder's evenly spread; default: all"
    )
    parser.add_argument("--corruptions", nargs="+", choices=CORRUPTIONS, default=BENCHMARK, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, choices=SCALES, help="default: that of the images' own size")
    parser.add_argument("--size", type=int, help="of a folder's images, resized and cropped; default: as they are")
    parser.add_argument("--on_error", choices=("stop", "skip"), default="stop", help="at an image that cannot be read")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
