"""The decoded cache: the same batches, made once, and never of other images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.errors import assert_names
from helpers.small_tree import WNIDS, N, caches, make, read, same, write
from tta.runs.fingerprint import fingerprint
from tta.streams import Batch, Scenario, cache_writer
from tta.streams import cache as module
from tta.streams.arrays import ArrayImages
from tta.streams.datasets import corrupted as corrupted_module
from tta.streams.datasets.corrupted import corrupted
from tta.streams.files import FileImages
from tta.streams.types import LoadedImages


def alike(ours: list[Batch], theirs: list[Batch]) -> None:
    """Assert that corrupted images are the same; those computed in other batches may differ by one grey level."""
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.images.int(), b.images.int(), rtol=0, atol=1)


def clean_npz(file: Path, pixels: np.ndarray | None = None) -> Path:
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), np.uint8)
    np.savez(file, images=pixels, labels=np.arange(N) % 3)
    return file


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 11),
    limit=st.none() | st.integers(1, 12),
    scenario=st.sampled_from(
        [Scenario(), Scenario(reset="never", mix=True), Scenario(long_tailed=3.0), Scenario(rounds=2)]
    ),
)
def test_cache__gives_the_batches_of_the_files(
    small_files: Path, folder: Path, batch_size: int, limit: int | None, scenario: Scenario
) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "limit": limit, "severity": [5, 5]}
    cached = make(small_files, folder, **options)
    assert same(read(cached, scenario), read(make(small_files, **options), scenario))


def test_cache__spares_reading_the_files(small_files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(small_files, folder).prepare()
    asked: list[int] = []
    decode = FileImages.__call__

    def counted(self: FileImages, index: torch.Tensor) -> LoadedImages:
        asked.extend(index.tolist())
        return decode(self, index)

    monkeypatch.setattr(FileImages, "__call__", counted)
    stream = make(small_files, folder)
    stream.prepare()
    assert len(asked) == 2 * module.COMPARED  # a few of each domain, to see that they are still the same
    asked.clear()
    assert len(read(stream)) == 6
    assert asked == []


def test_cache__is_made_and_read_by_workers(
    small_files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_writer, "CHUNK", 4)
    expected = read(make(small_files))
    assert same(read(make(small_files, folder, workers=2)), expected)
    assert capsys.readouterr().err
    for workers in (0, 2):
        assert same(read(make(small_files, folder, workers=workers)), expected)
    assert capsys.readouterr().err == ""  # nothing was made again


@pytest.mark.parametrize("of", ["folder", "npz"])
def test_cache__keeps_corrupted_images(small_files: Path, folder: Path, tmp_path: Path, of: str) -> None:
    source = small_files / "fog" / "5" if of == "folder" else clean_npz(tmp_path / "clean.npz")
    options: dict[str, Any] = {"corruptions": ["shot_noise", "contrast"], "severity": [2, 4], "workers": 0}
    plain = corrupted(str(source), **options)
    cached = corrupted(str(source), **options, cache=str(folder))
    alike(read(cached), read(plain))
    assert len(caches(folder)) == 4
    assert cached.digest == plain.digest


def test_cache__other_pixels_have_another(folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), np.uint8)
    other = pixels.copy()
    other[N // 2 + 1, 7, 9, 2] ^= 1  # in none of the images that an opened cache is compared with
    for number, images in enumerate((pixels, other), 1):
        source = clean_npz(tmp_path / "clean.npz", images)
        corrupted(str(source), "contrast", workers=0, cache=str(folder)).prepare()
        assert len(caches(folder)) == number
    index = torch.arange(N)
    assert ArrayImages(pixels).cache_key(index) == ArrayImages(pixels.copy()).cache_key(index)
    names = {ArrayImages(images).cache_key(which) for images in (pixels, other) for which in (index, index.flip(0))}
    assert len(names) == 4


def test_cache__changes_neither_digest_nor_fingerprint(small_files: Path, folder: Path) -> None:
    assert make(small_files, folder).digest == make(small_files).digest
    rest: dict[str, Any] = {"model": {}, "scenario": {}, "method": {}, "seed": 0, "precision": "fp32"}
    plain, cached, older = (
        {"stream": {"size": 32, **cache}, **rest} for cache in ({"cache": False}, {"cache": "a folder"}, {})
    )
    assert fingerprint(plain, "weights") == fingerprint(cached, "weights") == fingerprint(older, "weights")


def test_cache__is_made_once_and_announced(small_files: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(small_files, folder).prepare()
    assert_names(capsys.readouterr().err, "stream.cache", 2 * N, "55.3 kB", folder)
    assert [path.name.rpartition("-")[0] for path in caches(folder)] == ["fog-5", "snow-5"]
    assert sum(file.stat().st_size for file in folder.glob("*/pixels.bin")) == 2 * N * 3 * 32**2
    # Neither a second run nor one that finds the data elsewhere makes it again.
    make(small_files, folder).prepare()
    moved = small_files.rename(small_files.with_name("elsewhere"))
    assert same(read(make(moved, folder)), read(make(moved)))
    assert capsys.readouterr().err == ""


def test_cache__true_takes_the_programs_folder(
    small_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTA_CACHE", str(tmp_path / "home"))
    make(small_files, True).prepare()
    assert len(caches(tmp_path / "home" / "streams")) == 2


def test_cache__holds_only_the_chosen_images(small_files: Path, folder: Path) -> None:
    make(small_files, folder, limit=4).prepare()
    assert {file.stat().st_size for file in folder.glob("*/pixels.bin")} == {4 * 3 * 32**2}
    make(small_files, folder).prepare()
    assert len(caches(folder)) == 4


def rewrite(path: Path) -> None:
    """Put another image into the file, which keeps its size."""
    size = path.stat().st_size
    write(path, 77)
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    os.utime(path, ns=(0, 1))


@pytest.mark.filterwarnings("ignore:images are missing")
@pytest.mark.parametrize("change", [rewrite, lambda path: path.unlink()], ids=["rewritten", "deleted"])
def test_cache__does_not_serve_a_changed_file(small_files: Path, folder: Path, change: Callable[[Path], None]) -> None:
    make(small_files, folder).prepare()
    before = caches(folder)
    change(small_files / "fog" / "5" / WNIDS[1] / "4.JPEG")
    assert same(read(make(small_files, folder, on_error="skip")), read(make(small_files, on_error="skip")))
    assert len(caches(folder)) == len(before) + 1


def test_cache__other_corruptions_have_others(small_files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(**options: Any) -> int:
        source = str(small_files / "fog" / "5")
        corrupted(source, **{"corruptions": "contrast", "workers": 0, "cache": str(folder), **options}).prepare()
        return len(caches(folder))

    assert prepare() == 1
    others: list[dict[str, Any]] = [{"seed": 1}, {"scale": 224}, {"severity": 3}]
    for number, options in enumerate(others, 2):
        assert prepare(**options) == number, options
    monkeypatch.setattr(corrupted_module, "recipe_digest", lambda: "another version")
    assert prepare() == 5
