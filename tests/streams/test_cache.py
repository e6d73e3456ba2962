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

from helpers import small_tree
from helpers.small_tree import WNIDS, N, caches, make, read, same, write
from tta.runs import fingerprint
from tta.streams import Scenario
from tta.streams import cache as module
from tta.streams import corrupted as corrupted_module
from tta.streams.arrays import ArrayImages, CachedImages
from tta.streams.corrupted import corrupted


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_tree.tree(tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, only the few images that an opened cache is compared with may be read."""
    monkeypatch.setattr(module, "_fill", lambda *arguments: pytest.fail("a cache was made"))


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 11),
    limit=st.none() | st.integers(1, 12),
    scenario=st.sampled_from(
        [Scenario(), Scenario(reset="never", mix=True), Scenario(long_tailed=3.0), Scenario(rounds=2)]
    ),
)
def test_cached_batches_are_those_of_the_files(
    root: Path, folder: Path, batch_size: int, limit: int | None, scenario: Scenario
) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "limit": limit, "severity": [5, 5]}
    cached = make(root, folder, **options)
    assert same(read(cached, scenario), read(make(root, **options), scenario))
    assert all(isinstance(domain.load, CachedImages) for domain in cached._sources)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_make_and_read_the_same_cache(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    expected = read(make(root))
    assert same(read(make(root, folder, workers=2)), expected)
    forbid_decoding(monkeypatch)
    for workers in (0, 1, 2):
        assert same(read(make(root, folder, workers=workers)), expected)


@pytest.mark.parametrize("of", ["folder", "npz"])
def test_corrupted_images_are_cached_as_they_are_made(root: Path, folder: Path, tmp_path: Path, of: str) -> None:
    source = root / "fog" / "5"
    if of == "npz":
        source = tmp_path / "clean.npz"
        np.savez(
            source,
            images=np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), np.uint8),
            labels=np.arange(N) % 3,
        )
    options: dict[str, Any] = {"corruptions": ["shot_noise", "contrast"], "severity": [2, 4], "workers": 0}
    plain = corrupted(str(source), **options)
    cached = corrupted(str(source), **options, cache=str(folder))
    assert same(read(cached), read(plain))
    assert len(caches(folder)) == 4
    assert cached.digest == plain.digest


def test_arrays_of_other_pixels_have_caches_of_their_own(folder: Path, tmp_path: Path) -> None:
    source, labels = tmp_path / "clean.npz", np.arange(N) % 3
    pixels = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), np.uint8)
    other = pixels.copy()
    other[N // 2 + 1, 7, 9, 2] ^= 1  # none of the images that an opened cache is compared with
    options: dict[str, Any] = {"corruptions": "contrast", "workers": 0}
    for number, images in enumerate((pixels, other), 1):
        np.savez(source, images=images, labels=labels)
        assert same(read(corrupted(str(source), **options, cache=str(folder))), read(corrupted(str(source), **options)))
        assert len(caches(folder)) == number
    index = torch.arange(N)
    assert ArrayImages(pixels).content(index) == ArrayImages(pixels.copy()).content(index)
    names = {ArrayImages(images).content(which) for images in (pixels, other) for which in (index, index.flip(0))}
    assert len(names) == 4


def test_a_cache_changes_neither_digest_nor_fingerprint(root: Path, folder: Path) -> None:
    assert make(root, folder).digest == make(root).digest
    rest: dict[str, Any] = {"model": {}, "scenario": {}, "method": {}, "seed": 0, "precision": "fp32"}
    plain, cached, older = (
        {"stream": {"size": 32, **cache}, **rest} for cache in ({"cache": False}, {"cache": "a folder"}, {})
    )
    assert fingerprint(plain, "weights") == fingerprint(cached, "weights") == fingerprint(older, "weights")


def test_made_once_and_said_so(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root, folder).prepare()
    assert capsys.readouterr().err == f"stream.cache: making the pixels of 18 images, once: 55.3 kB in {folder}\n"
    assert [path.name.rpartition("-")[0] for path in caches(folder)] == ["fog-5", "snow-5"]
    assert sum(file.stat().st_size for file in folder.glob("*/pixels.bin")) == 2 * N * 3 * 32**2
    forbid_decoding(monkeypatch)
    make(root, folder).prepare()
    assert capsys.readouterr().err == ""


def test_true_is_a_folder_in_the_cache_of_the_program(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTA_CACHE", str(tmp_path / "home"))
    make(root, True).prepare()
    assert len(caches(tmp_path / "home" / "streams")) == 2


def test_only_the_chosen_images_are_cached(root: Path, folder: Path) -> None:
    make(root, folder, limit=4).prepare()
    assert {file.stat().st_size for file in folder.glob("*/pixels.bin")} == {4 * 3 * 32**2}
    make(root, folder).prepare()
    assert len(caches(folder)) == 4


def test_a_moved_tree_keeps_its_cache(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, folder).prepare()
    moved = root.rename(root.with_name("elsewhere"))
    forbid_decoding(monkeypatch)
    assert same(read(make(moved, folder)), read(make(moved)))


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 1))


def rewrite(path: Path) -> None:
    """Another image in a file of the same size."""
    size = path.stat().st_size
    write(path, 77)
    data = path.read_bytes()
    path.write_bytes(data[:size].ljust(size, b"\0"))
    touch(path)


@pytest.mark.filterwarnings("ignore:images are missing")
@pytest.mark.parametrize("change", [touch, rewrite, lambda path: write(path, 77), lambda path: path.unlink()])
def test_a_changed_file_is_not_taken_from_the_cache(root: Path, folder: Path, change: Callable[[Path], None]) -> None:
    make(root, folder).prepare()
    before = caches(folder)
    change(root / "fog" / "5" / WNIDS[1] / "4.JPEG")
    options: dict[str, Any] = {"on_error": "skip"}
    assert same(read(make(root, folder, **options)), read(make(root, **options)))
    assert len(caches(folder)) == len(before) + 1


@pytest.mark.parametrize("key", ["seed", "scale", "severity", "recipe"])
def test_other_corruptions_have_other_caches(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    options: dict[str, Any] = {"corruptions": "shot_noise", "workers": 0, "cache": str(folder)}
    corrupted(str(root / "fog" / "5"), **options).prepare()
    if key == "recipe":
        monkeypatch.setattr(corrupted_module, "recipe_digest", lambda: "another version")
    others: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1},
        "scale": {"scale": 224},
        "severity": {"severity": 3},
        "recipe": {},
    }
    corrupted(str(root / "fog" / "5"), **{**options, **others[key]}).prepare()
    assert len(caches(folder)) == 2
