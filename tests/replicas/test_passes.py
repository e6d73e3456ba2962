"""Methods in one pass do what each does by itself: predictions, weights, moments, and failures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm
import torch
from timm.layers import GroupNorm, GroupNormAct
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.backbones import small_net, varied_images
from helpers.device_questions import DeviceQuestions
from tta.checkpoints import method_state
from tta.methods import EATA, ETA, ROID, BNAdapt, BNAlpha, CoTTA, RDumb, Source, Tent
from tta.methods.base import Method, use_batch_statistics
from tta.methods.onepass import Loss, OnePass
from tta.methods.parameters import ALL_PARAMETERS, ParameterChoice, norm_parameters
from tta.objectives import CADF, COME, DEM, EM, SLR, AdaDEM
from tta.replicas.norms import Blocks, Interleaved, Joined, Layout, Separate, Wide, WideLayerNorm
from tta.replicas.passes import Replicas, likeness, packable, share_frozen

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUTS: list[type[Layout]] = [Blocks, Interleaved]
OBJECTIVES = [
    *(EM(), CADF(), DEM(1.1, 1.2), AdaDEM(), COME(), SLR()),
    *(AdaDEM(), EM(), AdaDEM(calibrate=False), AdaDEM(normalize=False), AdaDEM(momentum=0.5)),
]
SGD = functools.partial(torch.optim.SGD, momentum=0.9)


def methods(
    backbone: nn.Module, kind: Callable[..., Method] = Tent, optimizer: Any = SGD, **options: Any
) -> list[OnePass]:
    """One for each objective, of growing learning rate."""
    made = [
        kind(backbone, objective, functools.partial(optimizer, lr=0.001 * (number + 1)), **options)
        for number, objective in enumerate(OBJECTIVES)
    ]
    assert all(packable(method, backbone) for method in made)
    return made  # type: ignore[return-value]


def images(step: int, count: int, n: int = 12, device: str = "cpu") -> list[Tensor]:
    """Other ones for each replica, laid in memory as files give them."""
    made = [varied_images(n, 100 * step + number) for number in range(count)]
    return [batch.to(device).contiguous(memory_format=torch.channels_last) for batch in made]


def side_by_side(alone: Sequence[OnePass], replicas: Replicas, batches: Sequence[Tensor]) -> None:
    """Give the same batches to methods by themselves and in one pass."""
    for method, batch in zip(alone, batches, strict=True):
        method(batch)
    together(replicas, batches)


def together(replicas: Replicas, batches: Sequence[Tensor]) -> list[Tensor]:
    for method, batch in zip(replicas.methods, batches, strict=True):
        method.begin(len(batch))
    logits = replicas.forward(batches)
    assert replicas.learn(logits) == [None] * len(batches)
    return logits


def same_weights(ones: Sequence[Method], others: Sequence[Method]) -> None:
    for one, other in zip(ones, others, strict=True):
        mine, theirs = method_state(one), method_state(other)
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-5)
            else:
                assert {key: value[key] for key in ("images_seen", "batches_seen")} == {
                    key: theirs[name][key] for key in ("images_seen", "batches_seen")
                }
                torch.testing.assert_close(theirs[name].get("optimizer"), value.get("optimizer"), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [Tent, functools.partial(ETA, margin=0.9, diversity=0.95)], ids=["tent", "eta"])
@pytest.mark.parametrize("optimizer", [SGD, torch.optim.Adam], ids=["sgd", "adam"])
@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_methods_in_one_pass_do_what_each_does_by_itself(
    norm: str, optimizer: Any, kind: Callable[..., Method], layout: type[Layout], device: str
) -> None:
    backbone = small_net(norm).to(device)
    alone, packed = (methods(backbone, kind, optimizer) for _ in range(2))
    for method in packed:
        share_frozen(method, backbone)
    replicas = Replicas(packed, layout)
    for step in range(8):
        batches = images(step, len(alone), device=device)
        if step in (3, 5):
            for number in (step, 0):  # some begin anew, and not at the same time
                alone[number].reset()
                packed[number].reset()
        assert replicas.agree(batches)
        expected = [method(batch) for method, batch in zip(alone, batches, strict=True)]
        for one, other in zip(expected, together(replicas, batches), strict=True):
            torch.testing.assert_close(other.detach(), one, rtol=1e-3, atol=1e-3)
            assert torch.equal(other.argmax(-1), one.argmax(-1))
        for method, other_method in zip(alone, packed, strict=True):
            torch.testing.assert_close(other_method.diagnostics, method.diagnostics, rtol=1e-3, atol=1e-4)
    same_weights(alone, packed)
    source = Source(backbone)(batches[0])
    assert all((one - source).abs().max() > 1e-3 for one in expected)  # something was learnt


SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16), "stem_width": 8}
NETS: dict[str, tuple[str, dict[str, Any], set[type]]] = {
    "BatchNorm2d": ("resnet18", SMALL, {Wide}),
    "BatchNormAct2d": ("test_efficientnet", {}, {Wide}),
    "GroupNorm": ("resnet18", {**SMALL, "norm_layer": functools.partial(GroupNorm, num_groups=4)}, {Wide}),
    "GroupNormAct": ("test_efficientnet", {"norm_layer": functools.partial(GroupNormAct, num_groups=4)}, {Wide}),
    "LayerNorm2d": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, {Separate}),
    "LayerNorm": ("test_vit", {}, {WideLayerNorm}),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NETS)
def test_the_layers_of_timm_are_those_of_each_replica(name: str, layout: type[Layout], device: str) -> None:
    torch.manual_seed(0)
    model, options, expected_kinds = NETS[name]
    backbone = timm.create_model(model, num_classes=5, **options).to(device).eval()
    assert name in {type(module).__name__ for module in backbone.modules()}
    size = backbone.pretrained_cfg["input_size"][-1] if model == "test_vit" else 64
    alone, packed = ([Tent(backbone, EM(), functools.partial(SGD, lr=lr)) for lr in (0.01, 0.1, 1)] for _ in range(2))
    replicas = Replicas(packed, layout)
    kinds = {type(m) for m in replicas.network.modules() if isinstance(m, Joined | Separate)}
    assert kinds == (expected_kinds if layout is Interleaved else {Separate})
    for _ in range(3):
        batches = [torch.rand(4, 3, size, size, device=device) for _ in alone]
        expected = [method(batch) for method, batch in zip(alone, batches, strict=True)]
        for one, other in zip(expected, together(replicas, batches), strict=True):
            torch.testing.assert_close(other.detach(), one, rtol=1e-3, atol=1e-4)
    moved = (expected[2] - Source(backbone)(batches[2])).abs().max()
    assert moved > 1e-3
    same_weights(alone, packed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [Source, BNAdapt])
def test_methods_that_do_not_learn_share_the_pass_too(kind: Callable[..., OnePass], layout: type[Layout]) -> None:
    backbone = small_net("batch")
    replicas = Replicas([kind(backbone) for _ in range(3)], layout)
    batches = images(0, 3)
    logits = together(replicas, batches)
    assert not any(values.requires_grad for values in logits)
    for batch, values in zip(batches, logits, strict=True):
        torch.testing.assert_close(values, kind(backbone)(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_replica_that_diverges_does_not_touch_the_others(layout: type[Layout]) -> None:
    backbone = small_net("batch")
    ones, others = (
        [Tent(backbone, EM(), functools.partial(SGD, lr=lr)) for lr in (0.01, between, 0.02)]
        for between in (0.01, math.inf)
    )
    healthy, sick = Replicas(ones, layout), Replicas(others, layout)
    for step in range(4):
        batches = images(step, 3)
        well, ill = together(healthy, batches), together(sick, batches)
        assert torch.equal(well[0], ill[0])
        assert torch.equal(well[2], ill[2])
    assert not ill[1].isfinite().all()
    assert well[1].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_overflow_in_float16_is_of_one_replica(layout: type[Layout]) -> None:
    ones, others = methods(small_net("batch")), methods(small_net("batch"))
    start = [p.detach().clone() for p in others[1].parameters()]
    for group in (ones, others):
        group[1].loss_scale.scale.fill_(2.0**60)
    with torch.autocast("cpu", torch.float16):
        side_by_side(ones, Replicas(others, layout), images(0, len(ones)))
    halved = [float(method.loss_scale.scale) for method in others]
    assert halved == [float(method.loss_scale.scale) for method in ones]
    assert [scale for scale in halved if scale != 2.0**16] == [2.0**59]
    assert all(torch.equal(p, q) for p, q in zip(others[1].parameters(), start, strict=True))
    for one, other in zip(ones, others, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-4)
    assert not all(torch.equal(p, q) for p, q in zip(others[2].parameters(), start, strict=True))


def test_an_error_of_one_method_is_its_own() -> None:
    class Broken(EM):
        def loss(self, z: Tensor) -> Tensor:
            raise ValueError("broken")

    class NoLoss(Tent):
        def loss(self, logits: Tensor, losses: Tensor) -> Loss:
            raise RuntimeError("none")

    backbone = small_net("batch")
    sgd = functools.partial(SGD, lr=0.01)
    packed: list[OnePass] = [Tent(backbone, Broken(), sgd), Tent(backbone, EM(), sgd), NoLoss(backbone, EM(), sgd)]
    lone = Tent(backbone, EM(), sgd)
    replicas = Replicas(packed, Interleaved)
    for step in range(2):
        batches = images(step, 3)
        for method, batch in zip(packed, batches, strict=True):
            method.begin(len(batch))
        wrong = replicas.learn(replicas.forward(batches))
        assert [str(error) for error in wrong] == ["broken", "None", "none"]
        lone(batches[1])
    same_weights([lone], packed[1:2])
    assert packed[0].batches_seen == 0


def test_what_is_frozen_is_there_once() -> None:
    backbone = small_net("batch")
    packed = [Tent(backbone, EM(), functools.partial(SGD, lr=0.1)) for _ in range(2)]
    before = {name: p.clone() for name, p in packed[0].backbone.named_parameters()}
    for method in packed:
        share_frozen(method, backbone)
    weights = [method.backbone.get_parameter("body.0.weight") for method in packed]
    assert weights[0].data_ptr() == weights[1].data_ptr() == backbone.get_parameter("body.0.weight").data_ptr()
    together(Replicas(packed, Interleaved), images(0, 2))
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name])
    scales = [method.backbone.get_parameter("body.1.weight") for method in packed]
    assert not torch.equal(scales[0], scales[1])


def test_saved_states_hold_no_more_than_their_own() -> None:
    backbone = small_net("batch")
    packed = methods(backbone)
    together(Replicas(packed, Interleaved), images(0, len(packed)))
    for method in packed:
        for value in method_state(method).values():
            if isinstance(value, Tensor):
                assert value.untyped_storage().nbytes() == value.nbytes


def test_parameters_that_a_replica_leaves_out_stay() -> None:
    backbone = small_net("batch")
    sgd = functools.partial(SGD, lr=0.05)
    few = ParameterChoice(include=["body.1.*"])
    alone, packed = ([Tent(backbone, EM(), sgd, few), Tent(backbone, EM(), sgd)] for _ in range(2))
    replicas = Replicas(packed, Interleaved)
    for step in range(3):
        side_by_side(alone, replicas, images(step, 2))
    same_weights(alone, packed)
    kept = packed[0].backbone.get_parameter("body.4.weight")
    assert torch.equal(kept, backbone.get_parameter("body.4.weight"))
    assert kept.grad is None


class Twice(Tent):
    def step(self, images: Tensor) -> Tensor:
        return super().step(images)


def test_what_does_more_than_one_pass_is_not_packed() -> None:
    backbone, sgd = small_net("batch"), functools.partial(SGD, lr=0.1)
    assert packable(Tent(backbone, EM(), sgd), backbone)
    assert packable(Source(backbone), backbone)
    others: list[Method] = [
        *(Tent(backbone, EM(), sgd, steps=2), Tent(backbone, EM(), sgd, window=8), Twice(backbone, EM(), sgd)),
        *(Tent(backbone, EM(), sgd, ALL_PARAMETERS), BNAdapt(backbone, window=8), BNAlpha(backbone)),
        *(RDumb(backbone, EM(), sgd), CoTTA(backbone, sgd), ROID(backbone, sgd)),
    ]
    assert not any(packable(method, backbone) for method in others)
    assert EATA.step is OnePass.step  # its regulariser is within the loss


def test_learning_and_statistics_are_what_methods_in_a_pass_agree_in() -> None:
    backbone, sgd = small_net("batch"), functools.partial(SGD, lr=0.1)
    kinds = [Source(backbone), BNAdapt(backbone), Tent(backbone, EM(), sgd), ETA(backbone, AdaDEM(), sgd)]
    assert [likeness(method) for method in kinds] == [(False, False), (False, True), (True, True), (True, True)]
    assert likeness(BNAdapt(small_net("layer"))) == (False, False)


class Mixing(nn.Module):
    """A layer that centres the features over the batch, without a normalisation layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net("batch")

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return z - z.mean(0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_that_mixes_the_images_of_a_batch_is_found_out(layout: type[Layout]) -> None:
    backbone = Mixing()
    packed = [Tent(backbone, EM(), functools.partial(SGD, lr=0.1)) for _ in range(3)]
    batches = images(0, 3)
    batches[1] = batches[1] * 0.1
    assert not Replicas(packed, layout).agree(batches)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_that_work_on_other_rows_than_images_are_refused(layout: type[Layout]) -> None:
    net = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(0, 1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 5))
    packed = [Tent(net, EM(), functools.partial(SGD, lr=0.1)) for _ in range(2)]
    with pytest.raises(ValueError, match="a normalisation layer is given 72 rows for 24 images"):
        Replicas(packed, layout).forward(images(0, 2))


class Counted(TorchDispatchMode):
    """Within the block, counts operations that a device has to be asked for: not views."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.number += isinstance(out, Tensor) and not func.is_view
        return out


def test_a_pass_asks_the_device_for_a_fraction_and_never_waits() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("resnet18", num_classes=5, **SMALL).eval()
    sgd = functools.partial(SGD, lr=0.01, foreach=True)
    alone, packed = ([Tent(backbone, AdaDEM(), sgd) for _ in range(16)] for _ in range(2))
    replicas = Replicas(packed, Interleaved)
    batches = images(0, 16)
    for method, batch in zip(alone, batches, strict=True):
        method(batch)
    together(replicas, batches)  # what is made once is made
    with Counted() as by_themselves:
        for method, batch in zip(alone, batches, strict=True):
            method(batch)
    with Counted() as in_one_pass, DeviceQuestions() as questions:
        together(replicas, batches)
    assert questions.asked == []
    assert by_themselves.number > 4 * in_one_pass.number


class Sure(OnePass):
    """A method of a user's own."""

    def __init__(self, backbone: nn.Module, optimizer: Any, threshold: float) -> None:
        super().__init__(backbone)
        use_batch_statistics(self)
        self.objective, self.threshold = EM(), threshold
        self.optimizer = self.adapt(norm_parameters(self.backbone), optimizer)

    def loss(self, logits: Tensor, losses: Tensor) -> Loss:
        sure = losses < self.threshold
        return Loss((sure * losses).mean(), sure.sum())


def test_methods_of_a_users_own_share_passes() -> None:
    backbone, sgd = small_net("batch"), functools.partial(SGD, lr=0.01)
    alone, packed = ([Sure(backbone, sgd, threshold) for threshold in (0.3, 0.8, 2.0)] for _ in range(2))
    replicas = Replicas(packed, Interleaved)
    for step in range(4):
        side_by_side(alone, replicas, images(step, 3))
        used = [[int(method.diagnostics["used"]) for method in methods_] for methods_ in (alone, packed)]
        assert used[0] == used[1]
    assert used[0][0] < used[0][1] < used[0][2]
    same_weights(alone, packed)


def test_a_method_that_learns_without_a_loss_says_so() -> None:
    class NoLoss(OnePass):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__(backbone)
            self.objective = EM()
            self.optimizer = self.adapt(norm_parameters(self.backbone), functools.partial(SGD, lr=0.01))

    with pytest.raises(NotImplementedError, match="NoLoss has an optimizer, and needs a loss for it"):
        NoLoss(small_net("batch"))(images(0, 1)[0])
