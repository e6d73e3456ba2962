from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

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


def test_learns_and_ends_in_eval_mode() -> None:
    unseen = halves(seed=1)
    net = Linear()
    before = accuracy(net, *unseen)
    losses: list[tuple[int, float]] = []
    train_source(net, *halves(), epochs=10, batch_size=20, lr=0.05, report=lambda *row: losses.append(row))
    assert accuracy(net, *unseen) > max(0.95, before)
    assert [epoch for epoch, _ in losses] == list(range(1, 11))
    assert losses[-1][1] < losses[0][1]
    assert not net.training


def test_same_seed_same_weights_whatever_the_global_generator() -> None:
    weights = []
    for seed, state in ((0, 1), (0, 2), (1, 1)):
        net = Linear()
        torch.manual_seed(state)
        train_source(net, *halves(), epochs=2, batch_size=20, seed=seed, flip=True)
        weights.append(net.layer.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def keys(images: Any) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_no_shift_and_no_flip_is_the_identity_and_an_epoch_sees_each_image_once() -> None:
    seen = train(epochs=1, shift=0, flip=False).seen
    assert sorted(keys(seen)) == sorted(keys(halves()[0]))
    assert keys(seen) != keys(halves()[0])  # in an order of their own


def test_last_smaller_batch_is_left_out() -> None:
    assert len(train(epochs=2, batch_size=25).seen) == 2 * 50


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


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_images_are_shifted_and_mirrored_copies(flip: bool) -> None:
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


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_single_step_is_enough_for_the_schedule(epochs: int) -> None:
    assert train(epochs, batch_size=60).layer.weight.isfinite().all()


def test_fewer_images_than_a_batch() -> None:
    with pytest.raises(ValueError, match="at least one batch of 61 images, got 60"):
        train(batch_size=61)


def test_no_epochs() -> None:
    with pytest.raises(ValueError, match="at least 1 epoch, got 0"):
        train(epochs=0)


def test_accuracy_counts_every_image() -> None:
    net = train(epochs=5)
    images, labels = halves(7, seed=1)
    expected = float((net(images.float() / 255).argmax(1) == labels).float().mean())
    assert accuracy(net, images, labels, batch_size=3) == pytest.approx(expected)
    assert accuracy(net, images, 1 - labels, batch_size=3) == pytest.approx(1 - expected)


def test_npz_is_read_as_it_is(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=arrays, labels=np.arange(5, dtype=np.uint8))
    images, labels = load_clean(tmp_path / "data.npz")
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), arrays)
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 1, 2, 3, 4])


def test_folder_is_resized_cropped_and_labelled_in_alphabetical_order(tmp_path: Path) -> None:
    for name, colour in (("b", (0, 255, 0)), ("a", (255, 0, 0))):
        (tmp_path / name).mkdir()
        for width in (20, 40):
            Image.new("RGB", (width, 20), colour).save(tmp_path / name / f"{width}.png")
    Image.new("L", (20, 30), 255).save(tmp_path / "b" / "grey.png")
    images, labels = load_clean(tmp_path, size=10)
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (5, 3, 10, 10))
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert images[:, :, 5, 5].tolist() == [[255, 0, 0]] * 2 + [[0, 255, 0]] * 2 + [[255] * 3]


def test_folder_without_a_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder of images: give the size they are to have"):
        load_clean(tmp_path)


def test_missing_data_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no data set .*x.npz: expected an .npz file or a folder"):
        load_clean(tmp_path / "x.npz")


PIXELS = np.zeros((3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PIXELS}, "expected the arrays images and labels, got x"),
        ({"images": PIXELS, "labels": np.arange(2)}, r"got uint8 \(3, 8, 8, 3\) and int64 \(2,\)"),
        ({"images": PIXELS / 255, "labels": np.arange(3)}, r"expected images uint8 \(N, H, W, 3\) .* got float64"),
        ({"images": PIXELS.transpose(0, 3, 1, 2), "labels": np.arange(3)}, r"got uint8 \(3, 3, 8, 8\)"),
        ({"images": PIXELS, "labels": np.arange(3) / 2}, r"labels of whole numbers \(N,\), got .* float64 \(3,\)"),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        load_clean(tmp_path / "data.npz")


@pytest.mark.parametrize("kind", ["web page", "truncated", "npy"])
def test_file_that_is_no_npz(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, images=PIXELS, labels=np.arange(3))
    if kind == "web page":
        file.write_text("<html>")
    elif kind == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    else:
        np.save(tmp_path / "data.npy", PIXELS)
        file = tmp_path / "data.npy"
    with pytest.raises(
        ValueError, match=r"is truncated or no .npz file: expected one with the arrays images and labels"
    ):
        load_clean(file)
