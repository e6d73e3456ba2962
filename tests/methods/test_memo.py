"""MEMO against its formulas; the augmented copies are the only thing taken from the package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from helpers.backbones import CLASSES, SmallNet, small_net, some_images
from helpers.compositions import composed
from helpers.plain import NORM, PlainSGD, Weights, classify, gradients, mixed, running_of, soft, weights_of
from tta.methods import MEMO, ParameterChoice, Source
from tta.methods.memo import augmentation, augmented_copies, marginal_entropy

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
        self, net: SmallNet, optimizer: Callable[..., PlainSGD], prior: float | None, steps: int, copies: int, seed: int
    ) -> None:
        self.source, self.optimizer, self.steps, self.copies = weights_of(net), optimizer, steps, copies
        self.statistics = mixed(running_of(net), share=0 if prior is None else 1 / (prior + 1))
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, images: Tensor) -> tuple[Tensor, float]:
        rows, losses = [], []
        for image in images:
            w = dict(self.source)
            optimizer = self.optimizer(w, list(w))
            for _ in range(self.steps):
                leaves = optimizer.leaves()
                z = classify(leaves, augmented_copies(image, self.copies, self.generator), self.statistics)
                mean = soft(z).sum(0) / self.copies
                loss = -(mean * mean.log()).sum()
                optimizer.step(loss, leaves)
            losses.append(float(loss.detach()))
            rows.append(classify(w, image[None], self.statistics)[0])
        return torch.stack(rows), sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("optimizer", "plain_optimizer"),
    [
        (sgd, functools.partial(PlainSGD, lr=0.05, momentum=0.0)),
        (functools.partial(torch.optim.Adam, lr=0.01), PlainAdam),
    ],
    ids=["SGD", "Adam"],
)
@pytest.mark.parametrize(("prior", "steps"), [(16, 1), (16, 3), (0, 1), (None, 2), (2.5, 1)])
def test_follows_the_plain_formulas_for_several_batches(
    optimizer: Any, plain_optimizer: Callable[..., PlainSGD], prior: float | None, steps: int
) -> None:
    net = small_net("batch").double()
    method = MEMO(net, optimizer, augmentations=4, prior=prior, steps=steps, seed=3)
    plain = PlainMemo(net, plain_optimizer, prior, steps, copies=4, seed=3)
    for seed, size in enumerate((2, 1, 3, 2)):
        images = some_images(size, seed).double()
        logits, loss = plain.step(images)
        torch.testing.assert_close(method(images), logits.detach(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(method.diagnostics["loss"], torch.tensor(loss).double(), rtol=1e-6, atol=1e-9)
        assert method.diagnostics["used"] == size


def test_every_parameter_but_no_other_state_goes_back_after_each_image() -> None:
    method = MEMO(small_net("batch"), functools.partial(torch.optim.Adam, lr=0.1), augmentations=2)
    before = {key: value.clone() for key, value in method.backbone.state_dict().items()}
    method(some_images(3))
    assert all(torch.equal(value, before[key]) for key, value in method.backbone.state_dict().items())
    assert not method.optimizer.state
    assert all(p.grad is None for p in method.parameters())


def test_images_have_nothing_to_do_with_one_another() -> None:
    net, images = small_net("batch"), some_images(3)
    together = MEMO(net, sgd, augmentations=2)(images)
    one_by_one = MEMO(net, sgd, augmentations=2)
    assert torch.equal(together, torch.cat([one_by_one(image) for image in images.split(1)]))


def test_predicts_the_image_itself_after_the_update() -> None:
    net, images = small_net("layer"), some_images(1)
    source = Source(net)(images)
    assert torch.equal(MEMO(net, functools.partial(torch.optim.SGD, lr=0), augmentations=2)(images), source)
    assert not torch.allclose(MEMO(net, sgd, augmentations=2)(images), source)


def test_the_update_lowers_the_marginal_entropy_of_the_same_copies() -> None:
    net = small_net("batch").double().eval()
    copies = augmented_copies(some_images(1)[0].double(), 8, torch.Generator().manual_seed(0))
    loss = marginal_entropy(net(copies))
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    with torch.no_grad():
        for p, gradient in zip(net.parameters(), gradients, strict=True):
            p.sub_(1e-3 * gradient)
    assert marginal_entropy(net(copies)) < loss


def test_all_parameters_adapt_and_fewer_if_so_chosen() -> None:
    net = small_net("batch")
    adapted = [name for name, p in MEMO(net, sgd).backbone.named_parameters() if p.requires_grad]
    assert adapted == [name for name, _ in net.named_parameters()]
    few = MEMO(net, sgd, ParameterChoice("norm")).backbone
    assert [name for name, p in few.named_parameters() if p.requires_grad] == NORM


def test_marginal_entropy_is_that_of_the_mean_prediction() -> None:
    z = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = sum(row.softmax(0) for row in z) / 6
    torch.testing.assert_close(marginal_entropy(z), torch.distributions.Categorical(probs=mean).entropy())
    # Sure predictions that contradict one another are as uncertain as can be, and those that agree are not at all.
    assert torch.autograd.gradcheck(marginal_entropy, (z.requires_grad_(),))
    torch.testing.assert_close(marginal_entropy(1e4 * torch.eye(CLASSES)), torch.tensor(CLASSES).log())
    sure = (1e4 * torch.eye(CLASSES)[:1].repeat(3, 1)).requires_grad_()
    marginal_entropy(sure).backward()
    assert marginal_entropy(sure) == 0
    assert sure.grad is not None
    assert sure.grad.isfinite().all()
    assert marginal_entropy(z.bfloat16()).dtype == torch.float32


def an_image(side: int = 32) -> Tensor:
    ramp = torch.linspace(0, 1, side)
    return torch.stack((ramp.expand(side, side), ramp[:, None].expand(side, side), 1 - ramp.expand(side, side)))


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (20, 30), (224, 224)])
def test_copies_are_images_of_the_same_size(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    copies = augmented_copies(image, 3, torch.Generator())
    assert copies.shape == (3, 3, *size)
    assert copies.dtype == image.dtype
    assert 0 <= copies.min() <= copies.max() <= 1


def test_copies_differ_and_are_drawn_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = augmented_copies(an_image(), 4, generator), augmented_copies(an_image(), 4, generator)
    everything = torch.cat((first, second)).flatten(1)
    assert len(everything.unique(dim=0)) == 8


def test_copies_depend_on_the_given_generator_alone() -> None:
    torch.manual_seed(1)
    first = augmented_copies(an_image(), 4, torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(augmented_copies(an_image(), 4, torch.Generator().manual_seed(5)), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(augmented_copies(an_image(), 4, torch.Generator().manual_seed(6)), first)


def test_autocast_does_not_touch_the_copies() -> None:
    expected = augmented_copies(an_image(), 6, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmented_copies(an_image(), 6, torch.Generator().manual_seed(0)), expected)


def test_geometric_operations_do_something() -> None:
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


def test_a_large_step_in_bf16_autocast_reaches_the_prediction() -> None:
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "method.seed must be a whole number of at least 0, got -1"),
        ({"augmentations": 0}, "method.augmentations must be a whole number of at least 1, got 0"),
        ({"steps": 0}, "method.steps must be a whole number of at least 1, got 0"),
        ({"prior": -1}, "method.prior must be a number of at least 0, got -1"),
    ],
)
def test_bad_values_say_so(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MEMO(small_net("batch"), sgd, **arguments)


@pytest.mark.parametrize(
    ("words", "lr", "augmentations"),
    [
        (["stream=cifar10_c", "model=robustbench_standard"], 0.005, 32),
        (["stream=cifar10_c", "model=resnet18_w16_cifar10"], 0.005, 32),
        (["stream=cifar10_c", "model=resnet18_cifar10"], 0.005, 32),
        (["stream=imagenet_c", "model=resnet50"], 0.00025, 64),
        (["stream=imagenet_c", "model=vit_b16", "optimizer=adam"], 0.00001, 64),
    ],
)
def test_configured_as_the_official_code_runs(words: list[str], lr: float, augmentations: int) -> None:
    config = composed("method=memo", *words)
    assert config.method.optimizer.lr == lr
    assert config.method.augmentations == augmentations
