"""One trial against a plain loop over the stream."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tta.methods import Method, Tent
from tta.objectives import EM
from tta.search.trials import UNLABELLED, Evaluation, GivenUp, JudgedStream
from tta.streams import Domain, Scenario, Stream
from tta.streams.types import LoadedImages

SHARE = Scenario(part="share", share=0.3, share_seed=1)
SCENARIOS: dict[str, dict[str, Any]] = {
    "single_domain": {},
    "continual": {"reset": "never"},
    "episodic": {"reset": "batch"},
    "recurring": {"reset": "never", "rounds": 2},
    "mixed": {"reset": "never", "mix": True},
}


class Images:
    """Images in memory that count how often they are read."""

    def __init__(self, number: int) -> None:
        self.images = torch.randint(0, 256, (50, 3, 4, 4), generator=torch.Generator().manual_seed(number)).byte()
        self.read = 0

    def __call__(self, index: torch.Tensor) -> LoadedImages:
        self.read += 1
        return LoadedImages(self.images[index], torch.arange(len(index)))


def stream() -> Stream:
    labels = torch.arange(50) % 5
    domains = [Domain(name, 5, labels.roll(n), Images(n)) for n, name in enumerate(("fog", "snow", "frost"))]
    return Stream(domains, 5, batch_size=8)


def method(values: dict[str, float]) -> Method:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5))
    return Tent(backbone, EM(), functools.partial(torch.optim.SGD, lr=values["optimizer.lr"]))


def evaluation(scenario: Scenario, of: Stream | None = None, make: Callable[..., Method] = method) -> Evaluation:
    return Evaluation(make, of or stream(), scenario, SHARE, 3, torch.device("cpu"))


def plain(scenario: Scenario, values: dict[str, float]) -> float:
    """Accuracy on the share, mean over visits, in a loop of its own."""
    of, adapting = stream(), method(values)
    hits: dict[Any, list[bool]] = {}
    shares = [set(SHARE.select(domain.labels).tolist()) for domain in of.domains]
    for batch in of.batches(of.plan(scenario, 3)):
        if batch.reset:
            adapting.reset()
        predictions = adapting(batch.images.float() / 255).argmax(-1)
        for place, index, label, prediction in zip(
            batch.domain_index.tolist(), batch.index.tolist(), batch.labels.tolist(), predictions.tolist(), strict=True
        ):
            visit = batch.visits[place]
            if index in shares[visit.number]:
                hits.setdefault(visit, []).append(label == prediction)
    means = [sum(of_visit) / len(of_visit) for of_visit in hits.values()]
    return sum(means) / len(means)


def go_on(seen: int, accuracy: float) -> bool:
    return False


def note(heard: list[tuple[int, float]]) -> Callable[[int, float], bool]:
    """Take down what is reported."""

    def report(seen: int, accuracy: float) -> bool:
        heard.append((seen, accuracy))
        return False

    return report


@pytest.mark.parametrize("name", SCENARIOS)
def test_trial__adapts_on_all_is_judged_by_the_share(name: str) -> None:
    scenario = Scenario(**SCENARIOS[name])
    evaluate = evaluation(scenario)
    rates = (0.001, 1.0, 100.0, 0.001)
    accuracies = [evaluate({"optimizer.lr": lr}, go_on) for lr in rates]
    assert accuracies == pytest.approx([plain(scenario, {"optimizer.lr": lr}) for lr in rates])
    assert (len(set(accuracies)) == 1) == (name == "episodic")


def test_trial__no_label_beyond_the_share_matters() -> None:
    true, false = stream(), stream()
    reports: list[list[tuple[int, float]]] = [[], []]
    accuracies = []
    for of, heard in zip((true, false), reports, strict=True):
        evaluate = evaluation(Scenario(), of)
        if of is false:
            for domain in of.domains:
                share = SHARE.select(domain.labels)
                known = domain.labels[share].clone()
                domain.labels.add_(1).remainder_(5)
                domain.labels[share] = known
        accuracies.append(evaluate({"optimizer.lr": 0.5}, note(heard)))
    assert accuracies[0] == accuracies[1]
    assert reports[0] == reports[1]


def test_judged_stream__hides_labels_beyond_the_share() -> None:
    of = stream()
    judged = JudgedStream(of, Scenario(), 3, SHARE)
    shares = [set(SHARE.select(domain.labels).tolist()) for domain in of.domains]
    counts = {True: 0, False: 0}
    for batch in judged.batches(judged.plan(Scenario(), 3)):
        for place, index, label in zip(
            batch.domain_index.tolist(), batch.index.tolist(), batch.labels.tolist(), strict=True
        ):
            visit = batch.visits[place]
            known = visit.domain != UNLABELLED
            assert known == (index in shares[visit.number])
            assert label == (int(of.domains[visit.number].labels[index]) if known else 0)
            counts[known] += 1
    assert counts == {True: sum(map(len, shares)), False: 150 - sum(map(len, shares))}


def test_trial__share_alone_if_that_alone_arrives() -> None:
    accuracy = evaluation(SHARE)({"optimizer.lr": 0.5}, go_on)
    assert accuracy == pytest.approx(plain(SHARE, {"optimizer.lr": 0.5}))
    assert accuracy != pytest.approx(plain(Scenario(), {"optimizer.lr": 0.5}))


def test_report__after_each_domain_but_the_last() -> None:
    heard: list[tuple[int, float]] = []
    evaluate = evaluation(Scenario())
    accuracy = evaluate({"optimizer.lr": 0.5}, note(heard))
    assert [seen for seen, _ in heard] == [1, 2]
    assert 0 < accuracy < 1
    steps: list[int] = []

    def counted(values: dict[str, float]) -> Method:
        made = method(values)
        made.register_forward_hook(lambda *_: steps.append(1))
        return made

    with pytest.raises(GivenUp):
        evaluation(Scenario(), make=counted)({"optimizer.lr": 0.5}, lambda seen, _: seen == 2)
    assert len(steps) == 2 * 7  # 50 images in batches of 8
    heard.clear()
    evaluation(Scenario(reset="never", mix=True))({"optimizer.lr": 0.5}, note(heard))
    assert heard == []


def test_images__read_once_unless_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for most, times in ((10**6, 1), (1000, 3)):
        of = stream()
        monkeypatch.setattr("tta.search.trials.MOST_BYTES", most)
        evaluate = evaluation(Scenario(), of)
        found = {evaluate({"optimizer.lr": 0.5}, go_on) for _ in range(3)}
        assert len(found) == 1
        assert [domain.load.read for domain in of.domains] == [7 * times] * 3  # type: ignore[attr-defined]


def test_given_up__leaves_nothing_half_read() -> None:
    evaluate = evaluation(Scenario())
    with pytest.raises(GivenUp):
        evaluate({"optimizer.lr": 0.5}, lambda *_: True)
    assert evaluate({"optimizer.lr": 0.5}, go_on) == pytest.approx(plain(Scenario(), {"optimizer.lr": 0.5}))
