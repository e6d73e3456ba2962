"""Each method against its publication, recomputed by another route."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.backbones import CLASSES, SmallNet, small_net, some_images
from tta.checks import PartError
from tta.methods import ETA, SAR, BNAdapt, DeYO, ParameterChoice, Source, Tent
from tta.objectives import EM, AdaDEM

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
def test_tent_follows_the_plain_formulas_for_several_steps(adadem: bool) -> None:
    net = small_net("batch").double()
    tent = Tent(net, AdaDEM() if adadem else EM(), sgd)
    plain = PlainTent(net, adadem)
    for seed in range(4):
        images = some_images(seed=seed).double()
        np.testing.assert_allclose(tent(images).numpy(), plain.step(images.numpy()), rtol=1e-6, atol=1e-9)
        ours = torch.cat([dict(tent.backbone.named_parameters())[name].detach() for name in plain.names]).numpy()
        np.testing.assert_allclose(ours, plain.theta, rtol=1e-6, atol=1e-9)


def test_tent_predicts_before_the_update_it_causes() -> None:
    net = small_net("batch")
    first = Tent(net, EM(), sgd)(some_images())
    assert torch.equal(first, BNAdapt(net)(some_images()))


def test_tent_with_two_steps_predicts_before_the_last_update() -> None:
    net = small_net("batch")
    once, twice = Tent(net, EM(), sgd), Tent(net, EM(), sgd, steps=2)
    once(some_images())
    assert torch.equal(twice(some_images()), once(some_images()))


@pytest.mark.parametrize(("kind", "layers"), [("batch", 2), ("group", 2), ("layer", 3)])
def test_tent_adapts_scale_and_shift_of_every_normalisation_layer(kind: str, layers: int) -> None:
    tent = Tent(small_net(kind), EM(), sgd)
    names = [name for name, p in tent.backbone.named_parameters() if p.requires_grad]
    assert len(names) == 2 * layers
    assert not any(name.startswith("head") for name in names)


def test_source_uses_running_statistics_and_bn_adapt_those_of_the_batch() -> None:
    net = small_net("batch")
    net.eval()
    with torch.no_grad():
        expected = net(some_images())
    assert torch.equal(Source(net)(some_images()), expected)
    adapted = BNAdapt(net)
    alone, among_others = adapted(some_images(2)), adapted(some_images(8))
    assert not torch.allclose(alone, among_others[:2])
    # Mean 0 and variance 1 over the batch, before scale and shift.
    seen = []
    layer = adapted.backbone.get_submodule("body.1")
    layer.register_forward_hook(lambda m, i, o: seen.append((o - m.bias[:, None, None]) / m.weight[:, None, None]))
    adapted(some_images())
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var((0, 2, 3), correction=0), torch.ones(8), atol=1e-3, rtol=0)


def test_without_batchnorm_bn_adapt_is_source() -> None:
    net = small_net("group")
    assert torch.equal(BNAdapt(net)(some_images(1)), Source(net)(some_images(1)))


def test_dropout_stays_off() -> None:
    source = Source(small_net("batch").train())
    assert torch.equal(source(some_images()), source(some_images()))


def test_tent_without_normalisation_layers_says_which_layers_there_are() -> None:
    with pytest.raises(ValueError, match=r"the backbone has none; its layers are: .*Conv2d.*Linear.*method=source"):
        Tent(small_net("none"), EM(), sgd)
    with pytest.raises(ValueError, match=r'in Python adapt=ParameterChoice\("all"\)'):
        Tent(small_net("none"), EM(), sgd)
    assert Tent(small_net("none"), EM(), sgd, adapt=ParameterChoice("all"))(some_images()).shape == (8, CLASSES)


def test_an_optimizer_that_is_made_already_is_refused() -> None:
    net = small_net("batch")
    with pytest.raises(TypeError, match=r"Tent .*its own copy of the backbone.*partial\(torch.optim.Adam, lr=1e-3\)"):
        Tent(net, EM(), torch.optim.Adam(net.parameters(), lr=1e-3))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [Tent, ETA, SAR, DeYO])
def test_a_class_in_the_place_of_an_objective_is_refused(method: type[Tent]) -> None:
    with pytest.raises(TypeError, match=r"the objective is a class: give an object of it, AdaDEM\(\)"):
        method(small_net("batch"), AdaDEM, sgd)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [Source, BNAdapt, functools.partial(Tent, objective=EM(), optimizer=sgd)])
def test_a_backbone_that_gives_more_than_logits_is_told_so(method: type[Source]) -> None:
    class Verbose(SmallNet):  # as those of Hugging Face
        def forward(self, x: torch.Tensor) -> Any:
            return {"logits": super().forward(x)}

    with pytest.raises(TypeError, match=r"must give a tensor of logits \(N, C\), it gave dict: wrap it in a module"):
        method(Verbose("batch"))(some_images())


def test_a_state_that_is_not_detached_is_told() -> None:
    class Keeps(Tent):
        mean = torch.zeros(())

        def step(self, images: torch.Tensor) -> torch.Tensor:
            logits = self.backbone(images)
            self.mean = self.mean + logits.softmax(-1).mean(0)
            self.backward(self.mean.square().sum())
            return logits

    method = Keeps(small_net("batch"), EM(), sgd)
    method(some_images())
    with pytest.raises(PartError, match=r"Keeps: the loss hangs on a step before this one.*must be detached, as in"):
        method(some_images())


@pytest.mark.parametrize("method", [BNAdapt, functools.partial(Tent, objective=EM(), optimizer=sgd)])
def test_one_image_gives_no_batch_statistics(method: type[BNAdapt]) -> None:
    with pytest.raises(ValueError, match=r"at least 2 images in every batch.*got a batch of 1.*stream.batch_size"):
        method(small_net("batch"))(some_images(1))


def test_tent_takes_one_image_where_no_layer_needs_a_batch() -> None:
    assert Tent(small_net("layer"), EM(), sgd)(some_images(1)).shape == (1, 5)


@pytest.mark.parametrize("steps", [0, 1.5])
def test_tent_refuses_no_step_and_half_a_step(steps: Any) -> None:
    with pytest.raises(ValueError, match=f"method.steps must be a whole number of at least 1, got {steps}"):
        Tent(small_net("batch"), EM(), sgd, steps=steps)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_efficientnet", "test_byobnet", "resnet10t", "convnext_atto", "mobilenetv3_small_050"]
)
def test_tent_works_on_timm_networks(name: str) -> None:
    import timm

    net = timm.create_model(name, num_classes=5, drop_path_rate=0.2)
    size = net.pretrained_cfg["input_size"][-1] if name == "test_vit" else 64
    tent = Tent(net, AdaDEM(), sgd)
    images = torch.rand(2, 3, size, size)
    before = {key: p.clone() for key, p in tent.backbone.named_parameters()}
    assert tent(images).shape == (2, 5)
    moved = {key for key, p in tent.backbone.named_parameters() if not torch.equal(p, before[key])}
    norms = {
        f"{layer}.{kind}"
        for layer, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)
        for kind, _ in module.named_parameters(recurse=False)
    }
    assert moved
    assert moved <= norms
