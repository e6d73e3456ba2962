"""How batches are read: by threads, by processes, on the device; and that they are the same ones."""

from __future__ import annotations

import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.errors import raises_naming
from helpers.numbered_images import Numbered, domain
from helpers.small_tree import same
from tta.streams import Batch, Domain, Scenario, Stream
from tta.streams import loader as reading
from tta.streams.arrays import ArrayImages, DeviceImages
from tta.streams.datasets.corrupted import CorruptedImages
from tta.streams.files import FileImages
from tta.streams.loader import clean_of, device_resident, fits_on_device, prefetch_one, read_batches
from tta.streams.types import LoadedImages

CPU = torch.device("cpu")


def array_domain(name: str = "fog", n: int = 23, seed: int = 0, size: int = 4) -> Domain:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)
    return Domain(name, 5, torch.arange(n) % 7, ArrayImages(pixels))


def read(*domains: Domain, workers: int = 0, scenario: Scenario | None = None, batch_size: int = 4) -> list[Batch]:
    stream = Stream(domains, 7, batch_size, workers=workers)
    return list(stream.batches(stream.plan(scenario or Scenario(reset="never"), 3)))


def alike(ours: list[Batch], theirs: list[Batch]) -> None:
    """Assert that batches are the same; images corrupted elsewhere may differ by one grey level."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.images.int(), b.images.int(), rtol=0, atol=1, check_stride=True)
    assert same([replace(a, images=b.images) for a, b in zip(ours, theirs, strict=True)], theirs)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    batch_size=st.integers(1, 17),
    workers=st.integers(1, 4),
    mix=st.booleans(),
)
def test_threads__change_nothing(sizes: list[int], batch_size: int, workers: int, mix: bool) -> None:
    domains = [array_domain(f"d{k}", n, seed=k) for k, n in enumerate(sizes)]
    scenario = Scenario(reset="never", mix=mix)
    alone = read(*domains, scenario=scenario, batch_size=batch_size)
    assert same(read(*domains, scenario=scenario, batch_size=batch_size, workers=workers), alone)


def jpeg_domain(root: Path, n: int = 9) -> Domain:
    paths = [root / f"{number}.JPEG" for number in range(n)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return Domain("clean", 0, torch.arange(n) % 7, FileImages(paths, 32, skip=False))


def corrupted_domain(clean: Domain, name: str = "contrast", on_device: bool = False) -> Domain:
    load = CorruptedImages(clean.load, name, 5, seed=0, scale=32, on_device=on_device)
    return Domain(name, 5, clean.labels, load)


def test_threads__reading_files_change_nothing(tmp_path: Path) -> None:
    files = jpeg_domain(tmp_path)
    assert same(read(files, workers=3), read(files))


def test_workers__are_processes_for_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process reads leaves no trace in this one."""
    here: list[int] = []

    def noting(load: Callable[..., LoadedImages]) -> Callable[..., LoadedImages]:
        def call(self: ArrayImages | FileImages, index: torch.Tensor) -> LoadedImages:
            here.extend(index.tolist())
            return load(self, index)

        return call

    for kind in (ArrayImages, FileImages):
        monkeypatch.setattr(kind, "__call__", noting(kind.__call__))
    files = jpeg_domain(tmp_path)
    for alone in (array_domain(), files, corrupted_domain(files, on_device=True)):
        read(alone, workers=2)
        assert sorted(here) == list(range(len(alone.labels)))
        here.clear()
    for other in (domain(), corrupted_domain(files)):
        assert {batch.domain for batch in read(array_domain("frost"), other, workers=2)} == {"frost", other.name}
        assert here == []


@pytest.mark.parametrize(("mix", "workers"), [(False, 0), (True, 2)])
def test_corrupted__same_on_device_and_in_workers(tmp_path: Path, mix: bool, workers: int) -> None:
    files = jpeg_domain(tmp_path)
    scenario = Scenario(reset="never", mix=mix)
    one, other = (
        [corrupted_domain(files, on_device=there), corrupted_domain(files, "gaussian_noise", there), files]
        for there in (False, True)
    )
    expected = read(*one, scenario=scenario)
    alike(read(*other, scenario=scenario, workers=workers), expected)
    assert {batch.domain for batch in expected} == ({"mixed"} if mix else {"contrast", "gaussian_noise", "clean"})


def test_corrupted__may_be_held_on_the_device() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    clean = Domain("clean", 0, torch.arange(9) % 7, ArrayImages(pixels))
    fog = corrupted_domain(clean, on_device=True)
    assert clean_of(fog).load is clean.load
    assert clean_of(corrupted_domain(clean)).load is not clean.load
    assert clean_of(clean) is clean


def test_threads__stop_with_the_reader() -> None:
    asked: list[int] = []

    class Counting(ArrayImages):
        def __call__(self, index: torch.Tensor) -> LoadedImages:
            asked.extend(index.tolist())
            return super().__call__(index)

    before = threading.active_count()
    load = Counting(np.zeros((100, 2, 2, 3), np.uint8))
    stream = Stream([Domain("fog", 5, torch.zeros(100, dtype=torch.int64), load)], 7, 1, workers=2)
    batches = stream.batches(stream.plan(Scenario(order="file"), 0))
    next(batches)
    time.sleep(0.2)  # the threads do all that they have been asked to
    assert 1 <= len(asked) <= 5
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_threads__raise_an_error_at_its_turn() -> None:
    class Failing(ArrayImages):
        def __call__(self, index: torch.Tensor) -> LoadedImages:
            if 7 in index:
                raise OSError("image 7 is gone")
            return super().__call__(index)

    stream = Stream(
        [Domain("fog", 5, torch.arange(20) % 7, Failing(np.zeros((20, 2, 2, 3), np.uint8)))], 7, 5, workers=3
    )
    batches = stream.batches(stream.plan(Scenario(order="file"), 0))
    assert next(batches).index.tolist() == [0, 1, 2, 3, 4]
    with raises_naming(OSError, "image 7 is gone"):
        next(batches)


@pytest.mark.parametrize("channels_first", [False, True])
def test_resident__images_are_the_same(channels_first: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 3, 3), np.uint8)
    load = ArrayImages(pixels, channels_first)
    held = load.on(CPU)
    index = torch.tensor([8, 0, 3])
    expected = load(index)
    assert torch.equal(held(index).images, expected.images)
    assert held(index).images.stride() == expected.images.stride()
    pixels[:] = 0  # they were copied the first time, and are not read again
    assert torch.equal(held(index).images, expected.images)


def test_resident__domains_give_the_same_batches() -> None:
    domains = [array_domain("fog"), array_domain("snow", seed=1)]
    held = device_resident(domains, CPU)
    assert all(isinstance(domain.load, DeviceImages) for domain in held)
    scenario = Scenario(reset="never", mix=True)
    plan = Stream(domains, 7, 5).plan(scenario, 3)
    assert same(list(read_batches(held, plan, 0, CPU)), read(*domains, scenario=scenario, batch_size=5))


def test_resident__repeated_domain_is_held_once() -> None:
    fog, snow = array_domain("fog"), array_domain("snow", seed=1)
    bytes_each = 23 * 48
    assert fits_on_device([fog, snow, fog], 2 * bytes_each)
    assert not fits_on_device([fog, snow, fog], 2 * bytes_each - 1)
    held = device_resident([fog, snow, fog], CPU)
    assert held[0].load is held[2].load
    assert not fits_on_device([fog, domain()], 10**9)  # what is not in an array cannot be held


def test_resident__shared_while_it_is_read() -> None:
    load = array_domain().load
    assert isinstance(load, ArrayImages)
    held = load.on(CPU)
    assert load.on(CPU) is held
    assert pickle.loads(pickle.dumps(load)).array.shape == load.array.shape  # as it is sent to processes
    gone = weakref.ref(held)
    del held
    assert gone() is None


def test_one_ahead__starts_the_next_item_early() -> None:
    events: list[str] = []

    def source() -> Iterator[int]:
        for number in range(3):
            events.append(f"read {number}")
            yield number

    def start(number: int) -> int:
        events.append(f"start {number}")
        return 10 * number

    def finish(started: int) -> int:
        events.append(f"finish {started // 10}")
        return started // 10

    for number in prefetch_one(source(), start, finish):
        events.append(f"use {number}")
    assert events == [
        *("read 0", "start 0", "read 1", "start 1", "finish 0", "use 0"),
        *("read 2", "start 2", "finish 1", "use 1", "finish 2", "use 2"),
    ]


@given(items=st.lists(st.integers()))
def test_one_ahead__loses_nothing(items: list[int]) -> None:
    assert list(prefetch_one(items, str, int)) == items


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("held", "workers"), [(True, 2), (False, 0), (False, 2)])
def test_gpu__batches_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool, workers: int) -> None:
    gpu = torch.device("cuda")
    if not held:
        monkeypatch.setattr(reading, "RESIDENT_BYTES", 0)
    arrays = [array_domain("fog"), array_domain("snow", seed=1)]
    for domains in (arrays, [domain("fog", load=Numbered(broken=(3,)))], [jpeg_domain(tmp_path)]):
        stream = Stream(domains, 7, 4, workers=workers)
        plan = stream.plan(Scenario(reset="never"), 3)
        there = list(stream.batches(plan, gpu))
        assert all(batch.images.device.type == "cuda" for batch in there)
        here = [replace(batch, images=batch.images.cpu()) for batch in there]
        assert same(here, list(stream.batches(plan)))


@pytest.mark.gpu
def test_gpu__resident_images_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    load = array_domain()
    stream = Stream([load], 7, 4)
    plan = stream.plan(Scenario(order="file"), 0)
    monkeypatch.setattr(ArrayImages, "__call__", lambda self, index: pytest.fail("images were read on the host"))
    assert len(list(stream.batches(plan, torch.device("cuda")))) == 6


@pytest.mark.gpu
@pytest.mark.parametrize("mix", [False, True])
def test_gpu__corrupts_images(tmp_path: Path, mix: bool) -> None:
    files, arrays = jpeg_domain(tmp_path), array_domain(n=9, size=32)
    scenario = Scenario(order="file", reset="never", mix=mix)
    for clean in (files, arrays):
        one, other = ([corrupted_domain(clean, on_device=there), clean] for there in (False, True))
        stream = Stream(other, 7, 4, workers=2)
        there = list(stream.batches(stream.plan(scenario, 3), torch.device("cuda")))
        assert all(batch.images.device.type == "cuda" for batch in there)
        for batch, expected in zip(there, Stream(one, 7, 4).batches(stream.plan(scenario, 3)), strict=True):
            assert torch.equal(batch.index, expected.index)
            assert (batch.images.cpu().int() - expected.images.int()).abs().max() <= 1  # as tests/corruptions has it
