"""MEMO against its formulas; the augmented copies are the only thing taken from the package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from helpers.backbones import CLASSES, SmallNet, small_net, some_images
from helpers.compositions import composed
from helpers.errors import raises_naming
from helpers.plain import (
    NORM,
    PlainSGD,
    Weights,
    adapted_of,
    classify,
    gradients,
    mixed,
    moved,
    running_of,
    soft,
    weights_of,
)
from tta.methods import MEMO, ParameterChoice, Source
from tta.methods.memo import augmentation, augmented_copies

sgd = functools.partial(torch.optim.SGD, lr=0.05)


class PlainAdam(PlainSGD):
    """Adam, whose moments begin at nothing."""

    def __init__(self, weights: Weights, names: list[str]) -> None:
        super().__init__(weights, names, lr=0.01, momentum=0.9)
        self.squares, self.t = dict(self.velocity), 0

    def step(self, loss: Tensor, leaves: Weights) -> None:
        self.t += 1
        for name, g in gradients(loss, leaves, self.names).items():
            self.velocity[name] = 0.9 * self.velocity[name] + 0.1 * g
            self.squares[name] = 0.999 * self.squares[name] + 0.001 * g**2
            first, second = self.velocity[name] / (1 - 0.9**self.t), self.squares[name] / (1 - 0.999**self.t)
            self.weights[name] = self.weights[name] - self.lr * first / (second.sqrt() + 1e-8)


class PlainMemo:
    """One image after another, each from the source weights and with an optimizer that knows of no other."""

    def __init__(
        self, net: SmallNet, optimizer: Callable[..., PlainSGD], prior: float | None, steps: int, names: list[str]
    ) -> None:
        self.source, self.optimizer, self.steps, self.names = weights_of(net), optimizer, steps, names
        self.statistics = mixed(running_of(net), share=0 if prior is None else 1 / (prior + 1))
        self.generator = torch.Generator().manual_seed(3)

    def step(self, images: Tensor) -> tuple[Tensor, float]:
        rows, losses = [], []
        for image in images:
            w = dict(self.source)
            optimizer = self.optimizer(w, self.names)
            for _ in range(self.steps):
                leaves = optimizer.leaves()
                z = classify(leaves, augmented_copies(image, 4, self.generator), self.statistics)
                mean = soft(z).sum(0) / 4
                loss = -(mean * mean.log()).sum()
                optimizer.step(loss, leaves)
            losses.append(float(loss.detach()))
            rows.append(classify(w, image[None], self.statistics)[0])
        return torch.stack(rows), sum(losses) / len(losses)


ADAM = functools.partial(torch.optim.Adam, lr=0.01), PlainAdam
SGD = sgd, functools.partial(PlainSGD, lr=0.05, momentum=0.0)


@pytest.mark.parametrize(
    ("optimizers", "prior", "steps", "layers"),
    [(ADAM, 16, 2, "all"), (SGD, None, 1, "all"), (SGD, 2.5, 1, "norm")],
    ids=["Adam", "SGD", "norm"],
)
def test_memo__follows_plain_formulas(
    optimizers: tuple[Any, Any], prior: float | None, steps: int, layers: str
) -> None:
    net = small_net("batch").double()
    optimizer, plain_optimizer = optimizers
    method = MEMO(net, optimizer, ParameterChoice(layers), augmentations=4, prior=prior, steps=steps, seed=3)
    plain = PlainMemo(net, plain_optimizer, prior, steps, list(weights_of(net)) if layers == "all" else NORM)
    for seed, size in enumerate((2, 1, 2)):
        images = some_images(size, seed).double()
        logits, loss = plain.step(images)
        torch.testing.assert_close(method(images), logits.detach(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(method.diagnostics["loss"], torch.tensor(loss).double(), rtol=1e-6, atol=1e-9)
        assert method.diagnostics["used"] == size


def test_memo__all_but_the_generator_goes_back() -> None:
    method = MEMO(small_net("batch"), functools.partial(torch.optim.Adam, lr=0.1), augmentations=2)
    before = adapted_of(method)
    method(some_images(3))
    assert not moved(method, before)


def test_memo__sure_predictions_leave_no_nan() -> None:
    net = small_net("batch")
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(1e4 * torch.eye(CLASSES)[0])
    method = MEMO(net, sgd, augmentations=2)
    images = some_images(2)
    torch.testing.assert_close(method(images), Source(net)(images))
    assert method.diagnostics["loss"] == 0


def an_image(side: int = 32) -> Tensor:
    ramp = torch.linspace(0, 1, side)
    return torch.stack((ramp.expand(side, side), ramp[:, None].expand(side, side), 1 - ramp.expand(side, side)))


def copies_of(image: Tensor, n: int = 1, seed: int = 0) -> list[Tensor]:
    """What a network is shown when MEMO adapts to an image so many times in a row: 4 copies each time."""
    seen: list[Tensor] = []
    net = small_net("batch")

    def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0].clone())

    net.register_forward_pre_hook(note)
    MEMO(net, sgd, augmentations=4, seed=seed)(image.expand(n, -1, -1, -1))
    assert all(torch.equal(shown, image[None]) for shown in seen[1::2])  # predicted as it is, after the update
    return seen[::2]


@pytest.mark.parametrize("size", [(8, 8), (20, 30)])
def test_memo__copies_are_images_of_the_same_size(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    (copies,) = copies_of(image)
    assert copies.shape == (4, 3, *size)
    assert copies.dtype == image.dtype
    assert 0 <= copies.min() <= copies.max() <= 1


def test_memo__copies_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first, second = copies_of(an_image(), 2)
    assert len(torch.cat((first, second)).unique(dim=0)) == 8  # drawn anew for each image
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again, _ = copies_of(an_image(), 2)
    assert torch.equal(again, first)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(copies_of(an_image())[0], first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(copies_of(an_image(), seed=6)[0], first)


def test_memo__geometric_operations_do_something() -> None:
    """At torchvision's severity 1 every angle, shear and translation is 0; the official code's 1 goes further."""
    augmix = next(t for t in augmentation(32, 32).transforms if isinstance(t, v2.AugMix))
    largest = {
        name: float(magnitudes(augmix._PARAMETER_MAX, 32, 32)[augmix.severity - 1])
        for name, (magnitudes, _) in augmix._PARTIAL_AUGMENTATION_SPACE.items()
        if magnitudes(augmix._PARAMETER_MAX, 32, 32) is not None
    }
    assert largest["Rotate"] == pytest.approx(3, abs=0.5)  # degrees
    assert largest["ShearX"] == pytest.approx(0.03, abs=0.005)
    assert 1 <= largest["TranslateX"] <= 1.5  # pixels
    assert not augmix.all_ops
    assert augmix.mixture_width == 3
    assert augmix.chain_depth == -1  # 1 to 3, at random


def test_memo__step_under_autocast_reaches_prediction() -> None:
    """Autocast must not answer with copies of the weights from before the update."""
    net, images = small_net("layer"), some_images(2)
    choice = ParameterChoice("all", include=["body.0.*", "body.3.*", "head.weight"])
    still = MEMO(net, functools.partial(torch.optim.SGD, lr=0), choice, augmentations=2)
    moved = MEMO(net, functools.partial(torch.optim.SGD, lr=1.0), choice, augmentations=2)
    with torch.autocast("cpu", torch.bfloat16):
        before, after = still(images), moved(images)
        expected = MEMO(net, functools.partial(torch.optim.SGD, lr=1.0), choice, augmentations=2)
        one_by_one = torch.cat([expected(image) for image in images.split(1)])
    assert (before - after).abs().max() > 0.1
    assert torch.equal(after, one_by_one)


@pytest.mark.parametrize("options", [{"seed": -1}, {"augmentations": 0}, {"steps": 0}, {"prior": -1}], ids=str)
def test_memo__refuses_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with raises_naming(ValueError, f"method.{name}", value):
        MEMO(small_net("batch"), sgd, **options)


@pytest.mark.parametrize(
    ("words", "lr", "augmentations"),
    [
        (["stream=cifar10_c", "model=robustbench_standard"], 0.005, 32),
        (["stream=imagenet_c", "model=resnet50"], 0.00025, 64),
        (["stream=imagenet_c", "model=vit_b16", "optimizer=adam"], 0.00001, 64),
    ],
    ids=["cifar10_c", "resnet50", "vit_b16"],
)
def test_memo__is_configured_as_official(words: list[str], lr: float, augmentations: int) -> None:
    config = composed("method=memo", *words)
    assert (config.method.optimizer.lr, config.method.augmentations) == (lr, augmentations)
