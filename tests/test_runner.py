"""What a run lets its method know: the images of the stream in their order, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.numbered_images import domain
from tta.loggers import Logger
from tta.methods import Method
from tta.runner import Runner
from tta.runs import RunDirectory
from tta.streams import Scenario, Stream

NO_LOGGERS: list[Logger] = []
SIZE = 23


class Watching(Method):
    """Keeps all that it is called with, and what is known to it at each call; learns from the order of the images."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity())
        self.seen: list[Tensor] = []
        self.known: list[set[str]] = []
        self.register_buffer("weights", torch.zeros(7))

    def __call__(self, *images: Any, **others: Any) -> Tensor:
        assert len(images) == 1
        assert not others
        assert type(images[0]) is Tensor
        self.known.append(set(vars(self)) | set(vars(images[0])))
        return super().__call__(*images)

    def step(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        logits = torch.sin(images[:, 0, 0, :1] * 255 + torch.arange(7)) + self.weights
        self.weights = 0.5 * self.weights + logits[-1]
        return logits


def stream(shift: int = 0, batch_size: int = 8) -> Stream:
    """Two domains whose image i is filled with i and i + 30."""
    domains = [domain(name, SIZE) for name in ("fog", "snow")]
    domains[1].load.shift = 30  # type: ignore[attr-defined]
    labelled = [replace(each, labels=(each.labels + shift * torch.arange(SIZE)) % 7) for each in domains]
    return Stream(labelled, 7, batch_size)


def run(folder: Path, made: Stream, scenario: Scenario) -> tuple[Watching, dict[str, Any]]:
    method = Watching()
    with RunDirectory(folder) as directory:
        runner = Runner(method, made, scenario, 3, directory, NO_LOGGERS, torch.device("cpu"))
        return method, runner.run()


@pytest.mark.parametrize("scenario", [Scenario(), Scenario("never"), Scenario("never", "sorted"), Scenario("batch")])
def test_a_method_sees_the_planned_images_in_their_order_and_nothing_else(tmp_path: Path, scenario: Scenario) -> None:
    made = stream()
    method, _ = run(tmp_path, made, scenario)
    expected = [planned.index + 30 * planned.visits[0].number for planned in made.plan(scenario, 3)]
    assert len(method.seen) == len(expected) == 6
    for images, numbers in zip(method.seen, expected, strict=True):
        assert torch.equal((images * 255).round(), numbers.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2))
    names = set(vars(Watching())) | set(vars(torch.zeros(1)))
    assert method.known == [names] * len(expected)


@pytest.mark.parametrize("scenario", [Scenario(), Scenario("never"), Scenario("never", mix=True)])
def test_other_labels_change_neither_images_nor_predictions(tmp_path: Path, scenario: Scenario) -> None:
    """But for orders made of labels, as of a label shift; there they are what is asked for."""
    (one, first), (other, second) = (run(tmp_path / str(k), stream(k), scenario) for k in (0, 3))
    assert len(one.seen) == len(other.seen) > 1
    for ours, theirs in zip(one.seen, other.seen, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(one.weights, other.weights)
    assert [domain["entropy"] for domain in first["domains"]] == [domain["entropy"] for domain in second["domains"]]
    assert first["accuracy"] != second["accuracy"]


def test_accuracy_is_of_the_prediction_with_its_own_image(tmp_path: Path) -> None:
    made = stream()
    _, summary = run(tmp_path, made, Scenario("never"))
    weights, right = torch.zeros(7, dtype=torch.float64), 0
    for planned in made.plan(Scenario("never"), 3):
        pixels = planned.index + 30 * planned.visits[0].number
        for pixel, label in zip(pixels.tolist(), (planned.index % 7).tolist(), strict=True):
            logits = torch.sin(torch.tensor(float(pixel)) + torch.arange(7.0)).double() + weights
            right += int(logits.argmax()) == label
        weights = 0.5 * weights + logits
    assert summary["online_accuracy"] == right / (2 * SIZE)
    assert 0 < right < 2 * SIZE


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, loss: float) -> None:
    """Though the logits, which come from before the update, still are."""

    class Diverging(Watching):
        def step(self, images: Tensor) -> Tensor:
            self.report(loss=torch.tensor(loss if len(self.seen) == 4 else 0.5))
            return super().step(images)

    message = r"^the loss is not finite at step 4 \(snow, severity 5\): the adaptation diverged.*smaller optimizer\.lr"
    with RunDirectory(tmp_path) as directory, pytest.raises(FloatingPointError, match=message):
        Runner(Diverging(), stream(), Scenario(), 3, directory, NO_LOGGERS, torch.device("cpu")).run()
