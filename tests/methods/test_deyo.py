"""DeYO (Entropy is not enough for test-time adaptation) against its formulas, and what its official code does."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import hydra
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.backbones import CLASSES, SmallNet, small_net, some_images
from helpers.compositions import composed
from helpers.device_questions import DeviceQuestions
from helpers.plain import NORM, PlainAdaDEM, PlainSGD, classify, entropy, soft, weights_of
from tta.methods import BNAdapt, DeYO
from tta.methods.deyo import DESTRUCTIONS, occlude, shuffle
from tta.methods.parameters import NORM_BUT_LAST
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
        if kept:
            self.optimizer.step(sum(kept[1:], kept[0]) / len(kept), leaves)
        self.events.append((len(first), len(kept)))
        return z.detach()


EVENTS: dict[str, Callable[[list[tuple[int, int]]], bool]] = {
    "some dropped by the first stage": lambda events: any(0 < first < 8 for first, _ in events),
    "some dropped by the second": lambda events: any(0 < both < first for first, both in events),
    "none survived": lambda events: any(first == 0 for first, _ in events),
    "a lone survivor": lambda events: any(first == 1 for first, _ in events),
    "none kept of some": lambda events: any(both == 0 < first for first, both in events),
}


def make(kind: str = "batch", objective: Objective | None = None, optimizer: Any = sgd, **kwargs: Any) -> DeYO:
    return DeYO(small_net(kind).double(), objective or EM(), optimizer, seed=7, **kwargs)


def images(seed: int = 0, n: int = 8) -> Tensor:
    return some_images(n, seed).double()


def weights(method: DeYO) -> Tensor:
    return torch.cat([method.backbone.get_parameter(name).detach() for name in NORM])


@pytest.mark.parametrize("adadem", [False, True], ids=["EM", "AdaDEM"])
@pytest.mark.parametrize("destruction", DESTRUCTIONS)
def test_follows_the_plain_formulas_for_several_steps(destruction: str, adadem: bool) -> None:
    kwargs: dict[str, Any] = {"destruction": destruction, "margin": 0.4, "plpd": 0.3}
    method = make(objective=AdaDEM() if adadem else EM(), **kwargs)
    reference = PlainDeYO(small_net("batch").double(), PlainAdaDEM() if adadem else entropy, **kwargs)
    for seed in (5, 0, 1, 2, 3, 4, 6, 7, 8, 9):
        torch.testing.assert_close(method(images(seed)), reference.step(images(seed)), rtol=1e-6, atol=1e-9)
        expected = torch.cat([reference.w[name] for name in NORM])
        torch.testing.assert_close(weights(method), expected, rtol=1e-6, atol=1e-9)
        assert int(method.diagnostics["used"]) == reference.events[-1][1]
    happened = {name for name, happens in EVENTS.items() if happens(reference.events)}
    assert happened == set(EVENTS), reference.events


class Seen:
    """What a network is asked: batch sizes, and whether gradients are wanted."""

    def __init__(self, method: DeYO) -> None:
        self.images: list[Tensor] = []
        self.gradients: list[bool] = []
        method.backbone.register_forward_pre_hook(self._note)

    def _note(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.images.append(inputs[0].clone())
        self.gradients.append(torch.is_grad_enabled())


def test_only_survivors_are_predicted_again_without_gradient() -> None:
    method = make(margin=0.6)
    survivors = int((EM()(BNAdapt(method.backbone)(images())) < 0.6 * LN_C).sum())
    seen = Seen(method)
    method(images())
    assert 1 < survivors < 8
    assert [len(batch) for batch in seen.images] == [8, survivors]
    assert seen.gradients == [True, False]


def test_what_is_drawn_does_not_depend_on_who_survives() -> None:
    few, all_ = make(margin=0.6), make(margin=1.0)
    none = make(margin=0.0)
    seen_few, seen_all = Seen(few), Seen(all_)
    for method in (few, all_, none):
        method(images())
    survivors = EM()(BNAdapt(small_net("batch").double())(images())) < 0.6 * LN_C
    assert torch.equal(seen_few.images[1], seen_all.images[1][survivors])
    assert torch.equal(few.generator.get_state(), all_.generator.get_state())
    assert torch.equal(few.generator.get_state(), none.generator.get_state())


def test_each_image_and_batch_has_a_permutation_of_its_own_from_the_seed() -> None:
    same = images(n=1).expand(4, -1, -1, -1)
    first, second = make(margin=1.0), make(margin=1.0)
    seen = Seen(first), Seen(second)
    state = torch.get_rng_state()
    for method in (first, second):
        method(same)
        method(same)
    assert torch.equal(state, torch.get_rng_state())
    shuffled = torch.cat([seen[0].images[1], seen[0].images[3]])
    assert len(shuffled.unique(dim=0)) == 8
    assert torch.equal(seen[0].images[3], seen[1].images[3])
    other = DeYO(small_net("batch").double(), EM(), sgd, margin=1.0, seed=8)
    seen_by_other = Seen(other)
    other(same)
    assert not torch.equal(seen_by_other.images[1], seen[0].images[1])


def test_nothing_changes_where_nothing_is_kept() -> None:
    method = make(margin=1.0, plpd=0.0)
    method(images(0))
    before = weights(method)
    velocity = [state["momentum_buffer"].clone() for state in method.optimizer.state.values()]
    assert method.diagnostics["used"] > 0
    method.plpd = 1.0
    method(images(1))
    assert torch.equal(weights(method), before)
    after = [state["momentum_buffer"] for state in method.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(velocity, after, strict=True))
    assert method.diagnostics["used"] == 0


def test_a_lone_survivor_sees_the_statistics_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the same have the statistics of one, so it makes no difference where one would do."""
    margin = 0.3  # below it is one of the images
    doubled, single = make(margin=margin), make(margin=margin)
    seen = Seen(doubled), Seen(single)
    logits = doubled(images())
    monkeypatch.setattr("tta.methods.deyo.in_company", lambda images: images)
    torch.testing.assert_close(logits, single(images()))
    assert [len(batch) for batch in seen[0].images] == [8, 2]
    assert [len(batch) for batch in seen[1].images] == [8, 1]
    torch.testing.assert_close(weights(doubled), weights(single), rtol=1e-12, atol=1e-15)


def test_a_lone_survivor_passes_layers_with_one_value_for_each_channel() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, CLASSES)).double()
    method = DeYO(net, EM(), sgd, margin=1.0)
    entropy = EM()(method(images()))
    method.reset()
    method.margin = float(entropy.sort().values[:2].mean()) / LN_C
    seen = Seen(method)
    assert method(images()).isfinite().all()
    assert [len(batch) for batch in seen.images] == [8, 2]


def test_reset_works_as_the_official_one_does_not() -> None:
    method = make(margin=1.0, plpd=-1.0)
    start, first = weights(method), method(images())
    assert not torch.equal(weights(method), start)
    method.reset()
    assert torch.equal(weights(method), start)
    assert torch.equal(method(images()), first)


def test_a_step_asks_the_device_for_the_survivors_alone() -> None:
    method = make(objective=AdaDEM(), margin=1.0)
    method(images(0))
    with DeviceQuestions() as questions:
        method(images(1))
    assert questions.asked == ["nonzero"]


@pytest.mark.parametrize(("side", "grid"), [(224, 4), (32, 4), (8, 8), (12, 3), (7, 1)])
def test_patches_are_shuffled_whole(side: int, grid: int) -> None:
    number = torch.arange(grid * grid, dtype=torch.float).view(1, 1, grid, grid)
    numbered = nn.functional.interpolate(number, size=(side, side), mode="nearest").expand(2, 3, -1, -1)
    order = torch.stack([torch.randperm(grid * grid, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    got = shuffle(numbered, order, grid, grid)
    expected = nn.functional.interpolate(order.view(2, 1, grid, grid).float(), size=(side, side), mode="nearest")
    assert torch.equal(got, expected.expand(-1, 3, -1, -1))


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), tall=st.integers(1, 3), wide=st.integers(1, 3))
def test_the_inverse_permutation_undoes_a_shuffle(rows: int, columns: int, tall: int, wide: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    batch = torch.rand(3, 2, rows * tall, columns * wide, generator=generator)
    order = torch.rand(3, rows * columns, generator=generator).argsort(1)
    shuffled = shuffle(batch, order, rows, columns)
    assert torch.equal(shuffled.flatten(2).sort(-1).values, batch.flatten(2).sort(-1).values)
    assert torch.equal(shuffle(shuffled, order.argsort(1), rows, columns), batch)


@pytest.mark.parametrize("shape", [(30, 30), (9, 14), (5, 8)])
def test_patches_that_do_not_fit_are_made_to(shape: tuple[int, int]) -> None:
    method = make(margin=1.0)
    seen = Seen(method)
    colours = torch.rand(8, 3, 1, 1, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(8, 3, *shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    method(colours.expand(8, 3, *shape))
    method(noise)
    assert seen.images[1].shape == (8, 3, *shape)
    torch.testing.assert_close(seen.images[1], colours.expand(8, 3, *shape))
    assert seen.images[3].shape == (8, 3, *shape)
    assert not torch.allclose(seen.images[3], noise)
    assert bool(((seen.images[3] >= 0) & (seen.images[3] <= 1)).all())


def test_pixels_are_those_of_the_image_with_their_colours() -> None:
    method = make(margin=1.0, destruction="pixel")
    seen = Seen(method)
    batch = images()
    method(batch)
    for before, after in zip(batch, seen.images[1], strict=True):
        pixels = [sorted(map(tuple, image.flatten(1).T.tolist())) for image in (before, after)]
        assert pixels[0] == pixels[1]
        assert not torch.equal(before, after)


@pytest.mark.parametrize(("side", "begin", "end"), [(224, 56, 168), (32, 8, 24), (33, 8, 24)])
def test_the_middle_is_occluded_by_the_mean_colour(side: int, begin: int, end: int) -> None:
    batch = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    got = occlude(batch, 0.5)
    inside = torch.zeros(side, side, dtype=torch.bool)
    inside[begin:end, begin:end] = True
    assert torch.equal(got[..., ~inside], batch[..., ~inside])
    expected = batch.mean((2, 3)).unsqueeze(-1).expand(-1, -1, (end - begin) ** 2)
    assert torch.equal(got[..., inside], expected)


def test_occlusion_goes_from_nothing_to_all() -> None:
    assert torch.equal(occlude(images(), 0.0), images())
    assert (occlude(images(), 1.0).var((2, 3)) < 1e-20).all()


def test_the_default_of_python_is_that_of_the_configuration() -> None:
    config = composed("method=deyo", "seed=3")
    from_yaml = hydra.utils.instantiate(config.method, backbone=small_net("batch"), _convert_="all")
    ours = DeYO(small_net("batch"), EM(), sgd, seed=3)
    for name in ("margin", "entropy_reference", "plpd", "destruction", "patches", "occlusion", "window"):
        assert getattr(from_yaml, name) == getattr(ours, name), name
    assert torch.equal(from_yaml.generator.get_state(), ours.generator.get_state())
    choice = hydra.utils.instantiate(config.method.adapt, _convert_="all")
    assert tuple(choice.exclude_if_present) == NORM_BUT_LAST.exclude_if_present


def test_one_image_gives_no_batch_statistics() -> None:
    with pytest.raises(ValueError, match="DeYO needs at least 2 images in every batch"):
        make()(images(n=1))


def test_images_smaller_than_the_grid() -> None:
    with pytest.raises(ValueError, match=r"method.patches must be at most the side of the images, 8x8 pixels; got 9"):
        make(patches=9)(images())
    assert make(patches=9, destruction="pixel")(images()).shape == (8, CLASSES)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"margin": -0.5}, "method.margin must be a number from 0 to 1, got -0.5"),
        ({"entropy_reference": 2}, "method.entropy_reference must be a number from 0 to 1, got 2"),
        ({"plpd": 1.5}, "method.plpd must be a number from -1 to 1, got 1.5"),
        ({"destruction": "occ"}, "method.destruction must be one of patch, pixel, occlusion; got 'occ'"),
        ({"patches": 0}, "method.patches must be a whole number of at least 1, got 0"),
        ({"occlusion": None}, "method.occlusion must be a number from 0 to 1, got None"),
    ],
    ids=str,
)
def test_wrong_values(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_wrong_seed() -> None:
    with pytest.raises(ValueError, match=r"method.seed must be a whole number of at least 0, got -1"):
        DeYO(small_net("batch"), EM(), sgd, seed=-1)


@pytest.mark.parametrize(
    ("model", "lr", "plpd"), [("resnet50", 2.5e-4, 0.3), ("resnet50_gn", 2.5e-4, 0.2), ("vit_b16", 1e-3, 0.2)]
)
def test_official_hyper_parameters(model: str, lr: float, plpd: float) -> None:
    config = composed("method=deyo", f"model={model}", "stream=imagenet_c")
    assert (config.optimizer.lr, config.method.plpd) == (lr, plpd)
