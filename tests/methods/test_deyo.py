"""DeYO (Entropy is not enough for test-time adaptation) against its formulas, and what its official code does."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.backbones import CLASSES, SmallNet, small_net, some_images
from helpers.compositions import composed
from helpers.device_questions import DeviceQuestions
from helpers.errors import raises_naming
from helpers.plain import NORM, PlainAdaDEM, PlainSGD, assert_adapted, classify, entropy, soft, weights_of
from tta.methods import BNAdapt, DeYO
from tta.methods.common.parameters import NORM_BUT_LAST
from tta.objectives import EM, AdaDEM, Objective

sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
LN_C = math.log(CLASSES)


def plain_occlude(image: Tensor) -> Tensor:
    """The central half of (3, 8, 8) in the mean colour, pixel by pixel."""
    out = image.clone()
    for channel in range(3):
        mean = sum(float(image[channel, i, j]) for i in range(8) for j in range(8)) / 64
        for i in range(2, 6):
            for j in range(2, 6):
                out[channel, i, j] = mean
    return out


def plain_shuffle(image: Tensor, order: list[int], grid: int) -> Tensor:
    """Piece ``order[k]`` goes to place k, rows first."""
    out, side = image.clone(), image.shape[-1] // grid
    for place, piece in enumerate(order):
        to, origin = divmod(place, grid), divmod(piece, grid)
        for i in range(side):
            for j in range(side):
                source = image[:, origin[0] * side + i, origin[1] * side + j]
                out[:, to[0] * side + i, to[1] * side + j] = source
    return out


class PlainDeYO:
    """DeYO on ``SmallNet("batch")``, sample by sample and pixel by pixel."""

    def __init__(self, net: SmallNet, objective: Any, destruction: str, margin: float, plpd: float) -> None:
        self.w = weights_of(net)
        self.objective, self.destruction, self.margin, self.plpd = objective, destruction, margin, plpd
        self.optimizer = PlainSGD(self.w, NORM, 0.01, 0.9)
        self.generator = torch.Generator().manual_seed(7)
        self.events: list[tuple[int, int]] = []  # survive the first stage, and both

    def destroy(self, x: Tensor) -> list[Tensor]:
        if self.destruction == "occlusion":
            return [plain_occlude(image) for image in x]
        grid = {"patch": 4, "pixel": 8}[self.destruction]
        keys = torch.rand(len(x), grid * grid, generator=self.generator).tolist()
        orders = [sorted(range(grid * grid), key=row.__getitem__) for row in keys]
        return [plain_shuffle(image, order, grid) for image, order in zip(x, orders, strict=True)]

    def step(self, x: Tensor) -> Tensor:
        leaves = self.optimizer.leaves()
        z = classify(leaves, x)
        destroyed = self.destroy(x)
        losses, h = self.objective(z), entropy(z).tolist()
        first = [n for n in range(len(x)) if h[n] < self.margin * LN_C]
        kept = []
        after = list(classify(self.w, torch.stack([destroyed[n] for n in first]))) if first else []
        for n, other in zip(first, after, strict=True):
            p = soft(z[n]).tolist()
            label = p.index(max(p))
            drop = p[label] - float(soft(other)[label])
            if drop > self.plpd:
                kept.append((math.exp(0.4 * LN_C - h[n]) + math.exp(drop)) * losses[n])
        self.loss = 0.0
        if kept:
            loss = sum(kept[1:], kept[0]) / len(kept)
            self.loss = float(loss.detach())
            self.optimizer.step(loss, leaves)
        self.events.append((len(first), len(kept)))
        return z.detach()


EVENTS: dict[str, Callable[[list[tuple[int, int]]], bool]] = {
    "some dropped by the first stage": lambda events: any(0 < first < 8 for first, _ in events),
    "some dropped by the second": lambda events: any(0 < both < first for first, both in events),
    "none survived": lambda events: any(first == 0 for first, _ in events),
    "a lone survivor": lambda events: any(first == 1 for first, _ in events),
    "none kept of some": lambda events: any(both == 0 < first for first, both in events),
}


def make(objective: Objective | None = None, net: nn.Module | None = None, **kwargs: Any) -> DeYO:
    return DeYO(net or small_net("batch").double(), objective or EM(), sgd, **{"seed": 7, **kwargs})


def images(seed: int = 0, n: int = 8) -> Tensor:
    return some_images(n, seed).double()


# Every way that a batch can go is among the ten.
@pytest.mark.parametrize(("destruction", "adadem"), [("patch", False), ("pixel", True), ("occlusion", False)])
def test_deyo__follows_plain_formulas(destruction: str, adadem: bool) -> None:
    kwargs: dict[str, Any] = {"destruction": destruction, "margin": 0.4, "plpd": 0.3}
    method = make(AdaDEM() if adadem else EM(), **kwargs)
    reference = PlainDeYO(small_net("batch").double(), PlainAdaDEM() if adadem else entropy, **kwargs)
    for seed in (5, 0, 1, 2, 3, 4, 6, 7, 8, 9):
        torch.testing.assert_close(method(images(seed)), reference.step(images(seed)), rtol=1e-6, atol=1e-9)
        assert_adapted(method, {name: reference.w[name] for name in NORM})
        assert method.diagnostics["used"] == reference.events[-1][1]
        assert float(method.diagnostics["loss"]) == pytest.approx(reference.loss, rel=1e-6)
    happened = {name for name, happens in EVENTS.items() if happens(reference.events)}
    assert happened == set(EVENTS), reference.events


class Seen:
    """What a method's copy of this network is asked: images, and whether gradients are wanted."""

    def __init__(self, net: nn.Module | None = None) -> None:
        self.images: list[Tensor] = []
        self.gradients: list[bool] = []
        self.net = net or small_net("batch").double()

        def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
            self.images.append(inputs[0].clone())
            self.gradients.append(torch.is_grad_enabled())

        self.net.register_forward_pre_hook(note)


def test_deyo__survivors_alone_are_predicted_again() -> None:
    """Without gradient, and with permutations that do not depend on who survives."""
    survives = EM()(BNAdapt(small_net("batch").double())(images())) < 0.6 * LN_C
    few, all_ = Seen(), Seen()
    make(net=few.net, margin=0.6)(images())
    make(net=all_.net, margin=1.0)(images())
    assert 1 < survives.sum() < 8
    assert [len(batch) for batch in few.images] == [8, survives.sum()]
    assert [len(batch) for batch in all_.images] == [8, 8]
    assert few.gradients == [True, False]
    assert torch.equal(few.images[1], all_.images[1][survives])


def test_deyo__each_image_has_its_own_seeded_order() -> None:
    same = images(n=1).expand(4, -1, -1, -1)
    first, second, other = Seen(), Seen(), Seen()
    state = torch.get_rng_state()
    for seen, seed in ((first, 7), (second, 7), (other, 8)):
        method = make(net=seen.net, margin=1.0, seed=seed)
        method(same)
        method(same)
    assert torch.equal(state, torch.get_rng_state())
    assert len(torch.cat([first.images[1], first.images[3]]).unique(dim=0)) == 8
    assert torch.equal(first.images[3], second.images[3])
    assert not torch.equal(first.images[1], other.images[1])


def test_deyo__lone_survivor_passes_norm_of_vectors() -> None:
    """BatchNorm refuses a single value for each channel."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, CLASSES)).double()
    least, next_, *_ = EM()(BNAdapt(net)(images())).sort().values.tolist()
    seen = Seen(net)
    assert make(net=net, margin=(least + next_) / 2 / LN_C)(images()).isfinite().all()
    assert [len(batch) for batch in seen.images] == [8, 2]  # in its own company


def test_deyo__step_asks_the_device_twice() -> None:
    """For the survivors of the first stage, and whether the second leaves any."""
    method = make(AdaDEM(), margin=1.0)
    method(images(0))
    with DeviceQuestions() as questions:
        method(images(1))
    assert questions.asked[0] == "nonzero"
    assert len(questions.asked) == 2


def test_deyo__patches_move_whole() -> None:
    """Of images that are taller than wide: 3 x 3 patches of 4 x 2 pixels, of a number each."""
    numbers = torch.arange(9.0).double().view(1, 1, 3, 3) / 9
    seen = Seen()
    numbered = numbers.repeat_interleave(4, 2).repeat_interleave(2, 3).expand(4, 3, -1, -1)
    make(net=seen.net, margin=1.0, patches=3)(numbered)
    shuffled = seen.images[1]
    order = shuffled[:, :1, ::4, ::2]
    assert torch.equal(order.repeat_interleave(4, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1), shuffled)
    assert torch.equal(order.flatten(1).sort(-1).values, numbers.flatten(1).expand(4, -1))
    assert not torch.equal(order, numbers.expand(4, -1, -1, -1))


def test_deyo__patches_that_do_not_fit_are_made_to() -> None:
    for shape in ((30, 30), (5, 9)):
        seen = Seen()
        method = make(net=seen.net, margin=1.0)
        generator = torch.Generator().manual_seed(0)
        colours = torch.rand(8, 3, 1, 1, dtype=torch.double, generator=generator).expand(8, 3, *shape)
        noise = torch.rand(8, 3, *shape, dtype=torch.double, generator=generator)
        method(colours)
        method(noise)
        torch.testing.assert_close(seen.images[1], colours)
        assert seen.images[3].shape == noise.shape
        assert not torch.allclose(seen.images[3], noise)
        assert bool(((seen.images[3] >= 0) & (seen.images[3] <= 1)).all())


@pytest.mark.parametrize(("fraction", "begin", "end"), [(0.5, 8, 24), (0.0, 0, 0), (1.0, 0, 33)])
def test_deyo__occludes_the_middle_by_the_mean_colour(fraction: float, begin: int, end: int) -> None:
    batch = torch.rand(2, 3, 33, 33, generator=torch.Generator().manual_seed(0)).double()
    seen = Seen()
    make(net=seen.net, margin=1.0, destruction="occlusion", occlusion=fraction)(batch)
    inside = torch.zeros(33, 33, dtype=torch.bool)
    inside[begin:end, begin:end] = True
    assert torch.equal(seen.images[1][..., ~inside], batch[..., ~inside])
    expected = batch.mean((2, 3)).unsqueeze(-1).expand(-1, -1, (end - begin) ** 2)
    torch.testing.assert_close(seen.images[1][..., inside], expected)


def test_deyo__refuses_more_patches_than_pixels() -> None:
    with raises_naming(ValueError, "method.patches", 8, 9):
        make(patches=9)(images())
    assert make(patches=9, destruction="pixel")(images()).shape == (8, CLASSES)


@pytest.mark.parametrize(
    "options",
    [
        {"margin": -0.5},
        {"entropy_reference": 2},
        {"plpd": 1.5},
        {"patches": 0},
        {"occlusion": None},
        {"seed": -1},
    ],
    ids=str,
)
def test_deyo__refuses_values_out_of_range(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with raises_naming(ValueError, f"method.{name}", value):
        make(**options)


def test_deyo__refuses_unknown_destruction() -> None:
    with raises_naming(ValueError, "method.destruction", "occ", "patch", "pixel", "occlusion"):
        make(destruction="occ")


def test_deyo__has_official_hyper_parameters() -> None:
    for model, lr, plpd in (("resnet50", 2.5e-4, 0.3), ("resnet50_gn", 2.5e-4, 0.2), ("vit_b16", 1e-3, 0.2)):
        config = composed("method=deyo", f"model={model}", "stream=imagenet_c", "seed=3")
        assert (config.optimizer.lr, config.method.plpd, config.method.seed) == (lr, plpd, 3)
    assert tuple(config.method.adapt.exclude_if_present) == NORM_BUT_LAST.exclude_if_present
