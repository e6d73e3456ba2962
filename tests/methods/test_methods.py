"""Source, BNAdapt and Tent by their formulas, and the mistakes that all methods tell."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.backbones import CLASSES, SmallNet, small_net, some_images
from helpers.errors import raises_naming
from helpers.plain import adapted_of, classify, forward, mixed, running_of, weights_of
from tta.methods import ETA, SAR, BNAdapt, DeYO, ParameterChoice, Source, Tent
from tta.objectives import EM, AdaDEM, Objective
from tta.utils.validation import ComponentError

sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, weight) + bias[None, :, None, None]


class PlainTent:
    """Tent on ``SmallNet("batch")`` in float64 NumPy: forward by hand, gradient by central differences."""

    def __init__(self, net: SmallNet, adadem: bool, lr: float = 0.05, momentum: float = 0.9) -> None:
        self.w = {k: v.detach().double().numpy() for k, v in net.named_parameters()}
        self.names = [f"body.{layer}.{kind}" for layer in (1, 4) for kind in ("weight", "bias")]
        self.theta = np.concatenate([self.w[name] for name in self.names])
        self.velocity = np.zeros_like(self.theta)
        self.lr, self.momentum = lr, momentum
        self.table = np.full((5, 5), 0.2) if adadem else None

    def logits(self, x: np.ndarray, theta: np.ndarray) -> np.ndarray:
        parts = np.split(theta, np.cumsum([len(self.w[name]) for name in self.names])[:-1])

        def norm(h: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
            mean, var = h.mean((0, 2, 3), keepdims=True), h.var((0, 2, 3), keepdims=True)
            return (h - mean) / np.sqrt(var + 1e-5) * gamma[None, :, None, None] + beta[None, :, None, None]

        h = norm(conv(x, self.w["body.0.weight"], self.w["body.0.bias"], 1, 1), parts[0], parts[1])
        h = norm(conv(np.maximum(h, 0), self.w["body.3.weight"], self.w["body.3.bias"], 2, 0), parts[2], parts[3])
        return np.maximum(h, 0).mean((2, 3)) @ self.w["head.weight"].T + self.w["head.bias"]

    def step(self, x: np.ndarray) -> np.ndarray:
        z = self.logits(x, self.theta)
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        if self.table is None:
            entropy = -(p * np.log(p)).sum(1, keepdims=True)
            on_logits = -p * (np.log(p) + entropy)
        else:
            label = p.argmax(1)
            for k in set(label.tolist()):
                self.table[k] = 0.9 * self.table[k] + 0.1 * p[label == k].mean(0)
            reward = p * (z - (p * z).sum(1, keepdims=True) + 1)
            on_logits = (self.table[label] - reward) / np.abs(reward).sum(1, keepdims=True)
        gradient = np.zeros_like(self.theta)
        for i in range(len(self.theta)):
            step = np.zeros_like(self.theta)
            step[i] = 1e-5
            slope = (self.logits(x, self.theta + step) - self.logits(x, self.theta - step)) / 2e-5
            gradient[i] = (on_logits * slope).sum() / len(x)
        self.velocity = self.momentum * self.velocity + gradient
        self.theta = self.theta - self.lr * self.velocity
        return z


@pytest.mark.parametrize("adadem", [False, True], ids=["EM", "AdaDEM"])
def test_tent__follows_finite_differences(adadem: bool) -> None:
    net = small_net("batch").double()
    tent = Tent(net, AdaDEM() if adadem else EM(), sgd)
    plain = PlainTent(net, adadem)
    for seed in range(3):
        images = some_images(seed=seed).double()
        np.testing.assert_allclose(tent(images).numpy(), plain.step(images.numpy()), rtol=1e-6, atol=1e-9)
        ours = torch.cat([adapted_of(tent)[name] for name in plain.names]).numpy()
        np.testing.assert_allclose(ours, plain.theta, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("kind", "layers"), [("batch", 2), ("group", 2), ("layer", 3)])
def test_tent__adapts_every_normalisation_layer(kind: str, layers: int) -> None:
    tent = Tent(small_net(kind), EM(), sgd)
    names = [name for name, p in tent.named_parameters() if p.requires_grad]
    assert len(names) == 2 * layers
    assert not any(name.endswith(("head.weight", "head.bias")) for name in names)


def test_source_and_bn_adapt__statistics() -> None:
    """Source normalises with the running statistics, BNAdapt with those of the batch."""
    net, images = small_net("batch").double(), some_images().double()
    running = forward(weights_of(net), images, mixed(running_of(net), 0))[0]
    torch.testing.assert_close(Source(net)(images), running)
    torch.testing.assert_close(BNAdapt(net)(images), classify(weights_of(net), images))


def test_methods__without_batchnorm_take_one_image() -> None:
    for kind in ("layer", "group"):
        net = small_net(kind)
        logits = Source(net)(some_images(1))
        torch.testing.assert_close(BNAdapt(net)(some_images(1)), logits)
        torch.testing.assert_close(Tent(net, EM(), sgd)(some_images(1)), logits)


def test_methods__dropout_stays_off() -> None:
    source = Source(small_net("batch").train())
    assert torch.equal(source(some_images()), source(some_images()))


def test_tent__without_normalisation_layers() -> None:
    """The error names the layers there are, and what to choose instead."""
    ways_out = ("method=source", "adapt@method.adapt=all", 'adapt=ParameterChoice("all")')
    with raises_naming(ValueError, "Tent", "Conv2d", "Linear", *ways_out):
        Tent(small_net("none"), EM(), sgd)
    assert Tent(small_net("none"), EM(), sgd, adapt=ParameterChoice("all"))(some_images()).shape == (8, CLASSES)


def test_tent__refuses_a_finished_optimizer() -> None:
    net = small_net("batch")
    with raises_naming(TypeError, "Tent", "functools.partial(torch.optim.Adam"):
        Tent(net, EM(), torch.optim.Adam(net.parameters(), lr=1e-3))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [Tent, ETA, SAR, DeYO])
def test_methods__refuse_a_class_as_objective(method: type[Tent]) -> None:
    with raises_naming(TypeError, "AdaDEM()"):
        method(small_net("batch"), AdaDEM, sgd)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, 1.5])
def test_tent__refuses_other_steps(steps: Any) -> None:
    with raises_naming(ValueError, "method.steps", steps):
        Tent(small_net("batch"), EM(), sgd, steps=steps)


@pytest.mark.parametrize("method", [Source, functools.partial(Tent, objective=EM(), optimizer=sgd)])
def test_methods__refuse_more_than_logits(method: type[Source]) -> None:
    class Output(dict[str, Tensor]):
        pass

    class Verbose(SmallNet):  # as those of Hugging Face
        def forward(self, x: Tensor) -> Any:
            return Output(logits=super().forward(x))

    with raises_naming(TypeError, "Output", "(N, C)"):
        method(Verbose("batch"))(some_images())


def test_tent__loss_without_a_gradient() -> None:
    class Detached(Objective):
        def loss(self, z: Tensor) -> Tensor:
            return z.detach().sum(-1)

    with raises_naming(ComponentError, "Tent", "detach"):
        Tent(small_net("batch"), Detached(), sgd)(some_images())
