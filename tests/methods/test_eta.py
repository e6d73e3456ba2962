"""ETA against its formulas, and what is easily done wrong in it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.backbones import small_net, varied_images
from helpers.compositions import composed
from helpers.plain import soft, weights_of
from helpers.plain_eta import PlainETA
from tta.methods import ETA, Tent
from tta.objectives import CADF, EM, AdaDEM

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
LOGITS = 4


class Given(nn.Module):
    """A backbone whose logits are the first pixels of the image, scaled and shifted: logits at will."""

    num_classes = LOGITS

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(LOGITS)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :LOGITS] * self.norm.weight + self.norm.bias


def images_with(*probabilities: list[float]) -> Tensor:
    """Images that ``Given`` classifies with these probabilities."""
    images = torch.zeros(len(probabilities), 3, 2, 2, dtype=torch.float64)
    images.view(len(images), -1)[:, :LOGITS] = torch.tensor(probabilities, dtype=torch.float64).log()
    return images


A, B, UNSURE = [0.97, 0.01, 0.01, 0.01], [0.01, 0.97, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]


def on_given_logits(**options: Any) -> ETA:
    return ETA(Given().double(), EM(), sgd, **{"diversity": 0.5, **options})


def adapted(method: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in method.parameters() if p.requires_grad])


def used(method: ETA) -> int:
    return int(method.diagnostics["used"])


def assert_parity(ours: ETA, plain: PlainETA, batches: list[Tensor]) -> None:
    for images in batches:
        np.testing.assert_allclose(ours(images).numpy(), plain.step(images).numpy(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(weights_of(ours.backbone), plain.weights, rtol=1e-6, atol=1e-9)
        assert used(ours) == plain.dropped[-1][2]
        average = torch.zeros(5) if plain.m is None else plain.m
        np.testing.assert_allclose(ours.average.numpy(), average.numpy(), rtol=1e-6, atol=1e-12)


def batches_of(count: int, n: int = 8) -> list[Tensor]:
    return [varied_images(n, seed).double() for seed in range(count)]


@pytest.mark.parametrize(
    ("margin", "diversity", "shows"),
    [
        pytest.param(0.6, 0.6, lambda unsure, alike, kept: any(unsure) and any(alike) and any(kept[2:]), id="both"),
        pytest.param(0.4, 0.8, lambda unsure, alike, kept: kept[0] and not kept[1] and any(kept[2:]), id="nothing new"),
        pytest.param(0.05, 0.4, lambda unsure, alike, kept: not any(kept[:4]) and kept[4], id="late first"),
        pytest.param(0.8, 0.95, lambda unsure, alike, kept: sum(kept) > 50, id="nearly all"),
    ],
)
def test_follows_the_plain_formulas(margin: float, diversity: float, shows: Callable[..., bool]) -> None:
    net = small_net("batch").double()
    ours, plain = ETA(net, EM(), sgd, margin=margin, diversity=diversity), PlainETA(net, margin, diversity)
    assert_parity(ours, plain, batches_of(8))
    assert shows(*zip(*plain.dropped, strict=True)), plain.dropped  # that the batches are worth the comparison


@settings(max_examples=20, deadline=None)
@given(margin=st.floats(0.05, 1.1), diversity=st.floats(0.05, 1.1), n=st.integers(2, 9), seed=st.integers(0, 1000))
def test_follows_the_plain_formulas_whatever_the_thresholds(margin: float, diversity: float, n: int, seed: int) -> None:
    net = small_net("batch").double()
    ours, plain = ETA(net, EM(), sgd, margin=margin, diversity=diversity), PlainETA(net, margin, diversity)
    assert_parity(ours, plain, [varied_images(n, seed + step).double() for step in range(4)])


def test_another_objective_changes_the_loss_alone() -> None:
    """Selection, weights and moving average keep the entropy: the plain code has it there whatever the objective."""
    net = small_net("batch").double()
    ours = ETA(net, CADF(), sgd, margin=0.6, diversity=0.8)
    plain = PlainETA(net, 0.6, 0.8, objective=lambda z: -(soft(z) * z).sum())
    assert_parity(ours, plain, batches_of(5))


def test_an_objective_with_state_sees_the_whole_batch_and_is_reset() -> None:
    given_one = AdaDEM()
    method = ETA(small_net("batch"), given_one, sgd, margin=0.01)
    assert isinstance(method.objective, AdaDEM)
    images = varied_images()
    method(images)
    assert used(method) == 0
    expected = AdaDEM()
    expected(Tent(small_net("batch"), EM(), sgd)(images))
    torch.testing.assert_close(method.objective.table, expected.table)
    assert not given_one.table.numel()
    method.reset()
    assert method.objective.table.unique().tolist() == pytest.approx([0.2])


def test_predicts_before_the_update_it_causes() -> None:
    method, tent = ETA(small_net("batch"), EM(), sgd, margin=0.9), Tent(small_net("batch"), EM(), sgd)
    assert torch.equal(method(varied_images()), tent(varied_images()))
    assert used(method) > 0


def test_the_first_batch_is_filtered_by_entropy_alone() -> None:
    method = on_given_logits()
    method(images_with(A, A, B, UNSURE))
    assert used(method) == 3
    torch.testing.assert_close(method.average, torch.tensor([65, 33, 1, 1]).double() / 100, rtol=1e-6, atol=1e-9)


def test_without_a_sure_sample_there_is_no_moving_average_yet() -> None:
    method = on_given_logits()
    method(images_with(UNSURE, UNSURE))
    assert method.average.tolist() == [0] * 4
    method(images_with(A, UNSURE))  # still no diversity filter, and the first average is not a tenth of the mean
    assert used(method) == 1
    torch.testing.assert_close(method.average, torch.tensor(A).double(), rtol=1e-6, atol=1e-9)


def test_the_moving_average_takes_in_what_passes_both_filters() -> None:
    method = on_given_logits(momentum=0.3)
    method.optimizer.param_groups[0]["lr"] = 0.0  # so that the predictions are those given
    method(images_with(A))
    method(images_with(A, B, UNSURE))
    assert used(method) == 1
    torch.testing.assert_close(method.average, 0.7 * torch.tensor(A).double() + 0.3 * torch.tensor(B).double())
    before = method.average.clone()
    method(images_with(A, UNSURE))
    assert used(method) == 0
    assert torch.equal(method.average, before)


@pytest.mark.parametrize("optimizer", [sgd, functools.partial(torch.optim.Adam, lr=0.05, weight_decay=0.1)])
@pytest.mark.parametrize("nothing", [(UNSURE, UNSURE), (A, A)], ids=["unsure", "alike"])
def test_with_nothing_selected_there_is_no_step_not_even_momentum(optimizer: Any, nothing: tuple[list[float]]) -> None:
    method = ETA(Given().double(), EM(), optimizer, diversity=0.5)
    method(images_with(A, UNSURE))
    before, state = adapted(method), str(method.optimizer.state_dict())
    method(images_with(*nothing))
    assert used(method) == 0
    assert method.diagnostics["loss"] == 0
    assert torch.equal(adapted(method), before)
    assert str(method.optimizer.state_dict()) == state
    method(images_with(B, UNSURE))
    assert used(method) == 1
    assert not torch.equal(adapted(method), before)


def test_the_loss_is_the_mean_over_the_selected() -> None:
    alone, among_others = on_given_logits(), on_given_logits()
    alone(images_with(A, B))
    among_others(images_with(A, UNSURE, B, UNSURE, UNSURE))
    torch.testing.assert_close(adapted(alone), adapted(among_others), rtol=1e-9, atol=0)
    entropy = -sum(p * math.log(p) for p in A)
    expected = math.exp(0.4 * math.log(4) - entropy) * entropy
    assert float(among_others.diagnostics["loss"]) == pytest.approx(expected)


def test_the_margin_is_a_fraction_of_the_logarithm_of_the_classes() -> None:
    entropy = -sum(p * math.log(p) for p in A)
    for margin, expected in ((entropy / math.log(4) + 1e-6, 1), (entropy / math.log(4) - 1e-6, 0)):
        method = on_given_logits(margin=margin)
        method(images_with(A))
        assert used(method) == expected


def test_reset_forgets_the_moving_average() -> None:
    method = on_given_logits()
    method(images_with(A, UNSURE))
    method(images_with(A, UNSURE))
    assert used(method) == 0
    method.reset()
    assert method.average.numel() == 0
    method(images_with(A, UNSURE))
    assert used(method) == 1


def test_works_with_a_window_of_single_images() -> None:
    method = ETA(small_net("batch"), EM(), sgd, margin=0.8, diversity=0.9, window=4)
    before = adapted(method)
    for seed in range(8):
        assert method(varied_images(1, seed)).shape == (1, 5)
    assert not torch.equal(adapted(method), before)


def test_probabilities_and_entropies_are_of_full_precision_under_autocast() -> None:
    method = ETA(small_net("layer"), EM(), sgd, margin=0.8, diversity=0.9)
    with torch.autocast("cpu", torch.bfloat16):
        method(varied_images())
    assert method.average.dtype == torch.float32
    assert float(method.average.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["eta", "eata", "rdumb"])
@pytest.mark.parametrize(
    ("stream", "diversity", "fisher_alpha"),
    [("imagenet_c", 0.05, 2000), ("cifar10_c", 0.4, 1), ("cifar100_c", 0.1, 1), ("demo", 0.4, 1)],
)
def test_settings_of_each_stream(name: str, stream: str, diversity: float, fisher_alpha: float) -> None:
    method = composed(f"method={name}", f"stream={stream}").method
    assert (method.margin, method.diversity) == (0.4, diversity)
    assert method.get("fisher_alpha", fisher_alpha) == fisher_alpha
    assert method.get("fisher", {}).get("root") == ("demo" if (name, stream) == ("eata", "demo") else None)


@pytest.mark.parametrize(
    "options", [{"margin": 0}, {"margin": -0.4}, {"diversity": 0.0}, {"momentum": 0}, {"momentum": 1.1}], ids=str
)
def test_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(
        ValueError, match=rf"method.margin and .* must be greater than 0 and .* in \(0, 1\], got .*{name}={value}"
    ):
        ETA(small_net("batch"), EM(), sgd, **options)


def test_one_image_gives_no_batch_statistics() -> None:
    with pytest.raises(ValueError, match="ETA needs at least 2 images in every batch"):
        ETA(small_net("batch"), EM(), sgd)(varied_images(1))
