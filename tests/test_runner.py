"""What a run shows its method: the images of the stream in their order, and nothing else; and how it scores it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.errors import raises_naming
from helpers.own_parts import SHIFT, WATCH, Watching, logits_of, network, own_words
from helpers.sweep_files import rows, words

Command = Callable[..., Any]
IMAGES, BATCHES = 23, (8, 8, 7)  # of each of two domains


@pytest.fixture
def run(tta_command: Command, tmp_path: Path) -> Callable[..., Path]:
    """Run ``Watching`` on the numbered images; return the directory."""

    def call(*more: str) -> Path:
        runs_dir = f"runs{len(list(tmp_path.iterdir()))}"
        tta_command(*own_words(tmp_path / "own", "method=watching", f"runs_dir={runs_dir}"), *more)
        (file,) = tmp_path.glob(f"{runs_dir}/*/summary.json")
        return file.parent

    return call


def pixels(images: Tensor) -> Tensor:
    return (images[:, 0, 0, 0] * 255).round()


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    ("scenario", "resets"), [("single_domain", [0, 3]), ("continual", []), ("episodic", list(range(6)))]
)
def test_run__shows_images_and_nothing_else(run: Command, scenario: str, resets: list[int]) -> None:
    folder = run(f"scenario={scenario}")
    assert [len(images) for images in WATCH.images] == [*BATCHES, *BATCHES]
    assert [int(row["n"]) for row in rows(folder / "batches.csv")] == [*BATCHES, *BATCHES]
    for number in (0, 1):
        seen = torch.cat(WATCH.images[3 * number : 3 * number + 3])
        assert (seen == seen[:, :1, :1, :1]).all()
        order = (pixels(seen) - SHIFT * number).tolist()
        assert sorted(order) == list(range(IMAGES))
        assert order != sorted(order)
    assert WATCH.resets == resets
    names = set(vars(Watching(network()))) | set(vars(torch.zeros(1)))
    assert all(known <= names | {"loss"} for known in WATCH.known)


def test_run__other_labels_change_only_accuracy(run: Command) -> None:
    """But for orders made of labels, as of a label shift; there they are what is asked for."""
    entropies, accuracies, seen = [], [], []
    for labels in (1, 3):
        folder = run("scenario=mixed", f"stream.labels={labels}")
        entropies.append([row["entropy"] for row in rows(folder / "batches.csv")])
        accuracies.append([row["batch_accuracy"] for row in rows(folder / "batches.csv")])
        seen.append(torch.cat(WATCH.images))
    assert torch.equal(seen[0], seen[1])
    assert entropies[0] == entropies[1]
    assert accuracies[0] != accuracies[1]


@pytest.mark.parametrize("scenario", ["continual", "single_domain"])
def test_run__scores_predictions_before_the_update(run: Command, scenario: str) -> None:
    """Each with the label of its own image."""
    folder = run(f"scenario={scenario}")
    weights, right = torch.zeros(5, dtype=torch.float64), []
    for number, images in enumerate(WATCH.images):
        if scenario == "single_domain" and number == 3:
            weights = torch.zeros_like(weights)
        labels = (pixels(images) - SHIFT * (number // 3)).long() % 5
        logits = logits_of(pixels(images)) + weights
        right.append(int((logits.argmax(1) == labels).sum()))
        weights = 0.5 * weights + logits[-1]
    found = rows(folder / "batches.csv")
    assert [round(float(row["batch_accuracy"]) * int(row["n"])) for row in found] == right
    assert summary(folder)["online_accuracy"] == pytest.approx(sum(right) / (2 * IMAGES))
    assert 0 < sum(right) < 2 * IMAGES


def test_run__stops_at_a_loss_that_is_not_finite(tta_command: Command, tmp_path: Path) -> None:
    """Though the logits, which come from before the update, still are."""
    arguments = own_words(tmp_path / "own", "method=watching")
    WATCH.losses[4] = float("nan")
    with raises_naming(SystemExit, "loss", "4", "snow", "5", "optimizer.lr"):
        tta_command(*arguments)
    assert WATCH.calls == 5
    (folder,) = (tmp_path / "runs").glob("own*")
    assert [row["step"] for row in rows(folder / "batches.csv")] == list("01234")
    assert not (folder / "summary.json").exists()


# Tent once more, in plain torch


def plain_tent(files: Path, reset: bool, lr: float) -> tuple[list[float], list[float]]:
    """Entropy and accuracy of each batch: fog and snow, 40 images each in batches of 10, in the order of the files."""
    source = timm.create_model("test_efficientnet", num_classes=10).eval()
    source.load_state_dict(load_file(files / "net.safetensors"))
    labels = torch.from_numpy(np.load(files / "CIFAR-10-C" / "labels.npy")[:40]).long()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    entropies, accuracies = [], []
    net: nn.Module | None = None
    for name in ("fog", "snow"):
        images = torch.from_numpy(np.load(files / "CIFAR-10-C" / f"{name}.npy")[-40:]).permute(0, 3, 1, 2) / 255
        if net is None or reset:
            net = copy.deepcopy(source)
            layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
            for layer in layers:
                layer.train()
            learned = [parameter for layer in layers for parameter in layer.parameters()]
            velocity = [torch.zeros_like(parameter) for parameter in learned]
        for batch, truth in zip(images.split(10), labels.split(10), strict=True):
            z = net((batch - mean) / std)
            entropy = -(z.softmax(1) * z.log_softmax(1)).sum(1).mean()
            entropies.append(entropy.item())
            accuracies.append((z.argmax(1) == truth).double().mean().item())
            for number, gradient in enumerate(torch.autograd.grad(entropy, learned)):
                velocity[number] = 0.9 * velocity[number] + gradient
                learned[number].data -= lr * velocity[number]
    return entropies, accuracies


@pytest.mark.parametrize("scenario", ["single_domain", "continual"])
def test_run__tent_agrees_with_plain_torch(tta_command: Command, files: Path, tmp_path: Path, scenario: str) -> None:
    """From the files to the rows: labels, momentum, the sign of the loss, resets, and when a batch is scored."""
    more = ("stream.corruptions=[fog,snow]", f"scenario={scenario}", "scenario.order=file", "optimizer.lr=0.05")
    tta_command(*words(files), "method=tent", "logger=none", *more)
    (file,) = tmp_path.glob("runs/*/batches.csv")
    entropies, accuracies = plain_tent(files, scenario == "single_domain", 0.05)
    assert [float(row["entropy"]) for row in rows(file)] == pytest.approx(entropies, abs=1e-4)
    assert [float(row["batch_accuracy"]) for row in rows(file)] == pytest.approx(accuracies, abs=1e-6)
    assert abs(entropies[4] - entropies[0]) > 1e-3
