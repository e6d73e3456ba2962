from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers.compositions import composed
from helpers.errors import raises_naming
from helpers.scripts import load_script

script = load_script("train_source")
accuracy, load_clean, train_source = script.accuracy, script.load_clean, script.train_source

SIDE = 8


def halves(n: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise that is brighter in the left half (class 0) or in the right one (class 1)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(128, (n, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % 2
    images[labels == 0, :, :, : SIDE // 2] += 100
    images[labels == 1, :, :, SIDE // 2 :] += 100
    return images, labels


class Linear(nn.Module):
    """A linear classifier that keeps the images it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * SIDE * SIDE, 2)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.extend((images * 255).round().to(torch.uint8))
        return self.layer(images.flatten(1))


def train(epochs: int = 3, **options: Any) -> Linear:
    net = Linear()
    train_source(net, *halves(), **{"epochs": epochs, "batch_size": 20, "lr": 0.05, **options})
    return net


class TestTraining:
    def test_training__learns_and_ends_in_eval_mode(self) -> None:
        unseen = halves(seed=1)
        net = Linear()
        before = accuracy(net, *unseen)
        losses: list[tuple[int, float]] = []
        train_source(net, *halves(), epochs=10, batch_size=20, lr=0.05, report=lambda *row: losses.append(row))
        assert accuracy(net, *unseen) > max(0.95, before)
        assert [epoch for epoch, _ in losses] == list(range(1, 11))
        assert losses[-1][1] < losses[0][1]
        assert not net.training
        assert train(1, batch_size=60).layer.weight.isfinite().all()  # the schedule bears a single step

    def test_training__repeats_with_its_seed(self) -> None:
        """The global generator has no say in it."""
        weights = []
        for seed, state in ((0, 1), (0, 2), (1, 1)):
            net = Linear()
            torch.manual_seed(state)
            train_source(net, *halves(), epochs=2, batch_size=20, seed=seed, flip=True)
            weights.append(net.layer.weight)
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_training__sees_each_image_once_an_epoch(self) -> None:
        seen = train(epochs=1, shift=0, flip=False).seen
        assert sorted(keys(seen)) == sorted(keys(halves()[0]))
        assert keys(seen) != keys(halves()[0])  # in an order of their own
        assert len(train(epochs=2, batch_size=25).seen) == 2 * 50  # a last smaller batch is left out

    @pytest.mark.parametrize("flip", [False, True])
    def test_training__shifts_and_mirrors(self, flip: bool) -> None:
        images = halves()[0][:6]
        known: dict[bytes, tuple[int, bool, tuple[int, int]]] = {}
        for number, image in enumerate(images):
            for mirrored in (False, True) if flip else (False,):
                for key, move in shifts(image.flip(-1) if mirrored else image, 1).items():
                    known[key] = (number, mirrored, move)
        net = Linear()
        train_source(net, images, torch.arange(6) % 2, epochs=30, batch_size=6, shift=1, flip=flip)
        found = [known[key] for key in keys(net.seen)]  # a KeyError would be an image that is no such copy
        assert {number for number, _, _ in found} == set(range(6))
        assert {mirrored for _, mirrored, _ in found} == ({False, True} if flip else {False})
        assert len({move for _, _, move in found}) == 9

    def test_training__too_little_to_train(self) -> None:
        with raises_naming(ValueError, 61, 60):
            train(batch_size=61)
        with raises_naming(ValueError, "epoch", 0):
            train(epochs=0)

    def test_accuracy__counts_every_image(self) -> None:
        net = train(epochs=5)
        images, labels = halves(7, seed=1)
        expected = float((net(images.float() / 255).argmax(1) == labels).float().mean())
        assert accuracy(net, images, labels, batch_size=3) == pytest.approx(expected)
        assert accuracy(net, images, 1 - labels, batch_size=3) == pytest.approx(1 - expected)


def keys(images: Iterable[torch.Tensor]) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def shifts(image: torch.Tensor, most: int) -> dict[bytes, tuple[int, int]]:
    """The image moved by up to ``most`` pixels in both directions, by plain indexing."""
    moved = {}
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            result = torch.zeros_like(image)
            for row in range(max(0, down), min(SIDE, SIDE + down)):
                for column in range(max(0, right), min(SIDE, SIDE + right)):
                    result[:, row, column] = image[:, row - down, column - right]
            moved[result.numpy().tobytes()] = (down, right)
    return moved


PIXELS = np.zeros((3, 8, 8, 3), np.uint8)


class TestData:
    def test_npz__is_read_as_it_is(self, tmp_path: Path) -> None:
        arrays = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
        np.savez(tmp_path / "data.npz", images=arrays, labels=np.arange(5, dtype=np.uint8))
        images, labels = load_clean(tmp_path / "data.npz")
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), arrays)
        assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 1, 2, 3, 4])

    def test_folder__is_cropped_and_labelled_by_name(self, tmp_path: Path) -> None:
        for name, colour in (("b", (0, 255, 0)), ("a", (255, 0, 0))):
            (tmp_path / name).mkdir()
            for width in (20, 40):
                Image.new("RGB", (width, 20), colour).save(tmp_path / name / f"{width}.png")
        Image.new("L", (20, 30), 255).save(tmp_path / "b" / "grey.png")
        images, labels = load_clean(tmp_path, size=10)
        assert (images.dtype, tuple(images.shape)) == (torch.uint8, (5, 3, 10, 10))
        assert labels.tolist() == [0, 0, 1, 1, 1]
        assert images[:, :, 5, 5].tolist() == [[255, 0, 0]] * 2 + [[0, 255, 0]] * 2 + [[255] * 3]

    def test_data__that_is_not_there_or_has_no_size(self, tmp_path: Path) -> None:
        with raises_naming(ValueError, tmp_path, "size"):
            load_clean(tmp_path)
        with raises_naming(FileNotFoundError, tmp_path / "x.npz"):
            load_clean(tmp_path / "x.npz")

    @pytest.mark.parametrize(
        ("arrays", "named"),
        [
            ({"x": PIXELS}, ("images", "labels", "x")),
            ({"images": PIXELS, "labels": np.arange(2)}, ("(3, 8, 8, 3)", "(2,)")),
            ({"images": PIXELS / 255, "labels": np.arange(3)}, ("uint8", "float64")),
            ({"images": PIXELS, "labels": np.arange(3) / 2}, ("labels", "float64 (3,)")),
        ],
        ids=["names", "lengths", "images", "labels"],
    )
    def test_npz__wrong_arrays(self, tmp_path: Path, arrays: dict[str, Any], named: tuple[str, ...]) -> None:
        np.savez(tmp_path / "data.npz", **arrays)
        with raises_naming(ValueError, "data.npz", *named):
            load_clean(tmp_path / "data.npz")

    def test_npz__truncated(self, tmp_path: Path) -> None:
        file = tmp_path / "data.npz"
        np.savez(file, images=PIXELS, labels=np.arange(3))
        file.write_bytes(file.read_bytes()[:100])
        with raises_naming(ValueError, file):
            load_clean(file)


@pytest.mark.filterwarnings("ignore::UserWarning")  # it begins with random weights
def test_command__prints_options_that_load(
    call: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        images, labels = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 4
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    out = tmp_path / "a folder" / "net.safetensors"
    kwargs = json.dumps({"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]})
    options = ["--test", tmp_path / "test.npz", "--stem", "cifar", "--kwargs", kwargs, "--epochs", 1]
    call(script, tmp_path / "train.npz", *options, "--batch-size", 20, "--device", "cpu", "--out", out)
    said = capsys.readouterr().out

    (words,) = re.findall(r"\btta (model=.*)$", said, re.MULTILINE)
    model = hydra.utils.instantiate(composed(*shlex.split(words)).model, _convert_="all").eval()
    assert model.num_classes == 4
    assert model.net.conv1.stride == (1, 1)
    measured = 100 * accuracy(model, *load_clean(tmp_path / "test.npz"))
    assert f"{measured:.2f} %" in said
