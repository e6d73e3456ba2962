"""Images corrupted when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.errors import raises_naming
from tta.corruptions import corrupt
from tta.runs.fingerprint import fingerprint
from tta.streams import Batch, Scenario, Stream
from tta.streams.datasets import corrupted as module
from tta.streams.datasets.corrupted import corrupted
from tta.streams.datasets.imagenet_variants import clean

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(30) % 10
CLEAN = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("clean") / "clean.npz"
    np.savez(file, images=PIXELS, labels=LABELS)
    return str(file)


def make(source: str, **options: Any) -> Stream:
    return corrupted(source, **{"corruptions": ["fog", "shot_noise"], "workers": 0, **options})


def read(stream: Stream, seed: int = 0) -> list[Batch]:
    return list(stream.batches(stream.plan(Scenario(), seed)))


def by_sample(batches: list[Batch]) -> dict[tuple[str, int], torch.Tensor]:
    pairs = [(batch, k) for batch in batches for k in range(len(batch.index))]
    return {(batch.domain, int(batch.index[k])): batch.images[k] for batch, k in pairs}


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Allow for one grey level: in a batch of another size, sums are rounded in another way."""
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found.int(), expected.int(), rtol=0, atol=1)


def test_corrupted__images_are_those_of_corrupt(source: str) -> None:
    found = by_sample(read(make(source, severity=3, seed=5, batch_size=7)))
    assert len(found) == 60
    for name in ("fog", "shot_noise"):
        expected = corrupt(CLEAN, name, 3, index=torch.arange(30), seed=5)
        for sample in range(30):
            assert_same(found[name, sample], expected[sample])


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"limit": 11}, {"workers": 2}, {"on_device": True}])
def test_corrupted__noise_follows_place_and_seed(source: str, options: dict[str, Any]) -> None:
    """Not the batch, the order or who makes it."""
    expected = by_sample(read(make(source)))
    found = by_sample(read(make(source, **options), seed=3))
    assert len(found) == (22 if "limit" in options else 60)
    for key, image in found.items():
        assert_same(image, expected[key])


def test_corrupted__labels_classes_and_severity(source: str) -> None:
    stream = make(source, severity=2)
    assert stream.num_classes == 10
    for batch in read(stream):
        assert [visit.severity for visit in batch.visits] == [2]
        assert batch.labels.tolist() == (batch.index % 10).tolist()
    assert make(source, num_classes=12).num_classes == 12
    assert [domain.severity for domain in make(source, severity=[1, 5]).domains[:2]] == [1, 5]


def test_corrupted__digest_is_of_images_and_recipe(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = make(source).digest
    assert make(source, workers=1, batch_size=3, on_device=True).digest == digest
    for options in ({"severity": 4}, {"seed": 1}, {"scale": 224}, {"corruptions": ["shot_noise", "fog"]}):
        assert make(source, **options).digest != digest, options
    monkeypatch.setattr(module, "recipe_digest", lambda: "another version")
    assert make(source).digest != digest


def test_corrupted__fingerprint_ignores_the_place() -> None:
    rest: dict[str, Any] = {"model": {}, "scenario": {}, "method": {}, "seed": 0, "precision": "fp32"}
    one, other = ({"stream": {"source": place, "seed": 0}, **rest} for place in ("a.npz", "b.npz"))
    assert fingerprint(one, "weights", "data") == fingerprint(other, "weights", "data")
    other["stream"]["seed"] = 1
    assert fingerprint(one, "weights", "data") != fingerprint(other, "weights", "data")


def photographs(root: Path, size: int = 48) -> str:
    for number, wnid in enumerate(("n01440764", "n01443537")):
        (root / wnid).mkdir()
        for k in range(3):
            pixels = np.random.default_rng([number, k]).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / wnid / f"{k}.png")
    return str(root)


def test_corrupted__folder_is_cropped_then_corrupted(tmp_path: Path) -> None:
    root = photographs(tmp_path)
    (batch,) = read(make(root, corruptions="contrast", size=32))
    (cropped,) = read(clean(root, size=32, workers=0))
    order = cropped.index.argsort()[batch.index]
    assert torch.equal(cropped.index[order], batch.index)
    assert_same(batch.images, corrupt(cropped.images[order], "contrast", 5, index=batch.index))
    with raises_naming(ValueError, "stream.scale", 32, 224, 48):
        make(root)
    (batch,) = read(make(root, corruptions="contrast", scale=224))
    assert batch.images.shape == (6, 3, 48, 48)


def test_corrupted__skipped_images_leave_the_noise_alone(tmp_path: Path) -> None:
    root = photographs(tmp_path, size=32)
    expected = by_sample(read(make(root)))
    (tmp_path / "n01440764" / "1.png").write_bytes(b"")
    with raises_naming(ValueError, "1.png", "stream.on_error=skip"):
        read(make(root))
    batches = read(make(root, on_error="skip"))
    assert [len(batch.skipped) for batch in batches] == [1, 1]
    found = by_sample(batches)
    assert set(expected) - set(found) == {("fog", 1), ("shot_noise", 1)}
    for key, image in found.items():
        assert_same(image, expected[key])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"severity": 6}, ("stream.severity", 1, 5, 6)),
        ({"seed": -1}, ("stream.seed", -1)),
        ({"on_device": "gpu"}, ("stream.on_device", "true", "false", "'gpu'")),
        ({"scale": 64}, ("stream.scale", 32, 224, 64)),
        ({"corruptions": "foggy"}, ("stream.corruptions", "'foggy'", "fog")),
    ],
)
def test_corrupted__rejects_wrong_options(source: str, options: dict[str, Any], named: tuple[object, ...]) -> None:
    with raises_naming(ValueError, *named):
        make(source, **options)
