"""Steps as CUDA graphs: what a graph needs holds, which a CPU can show; that graphs do the same, a GPU has to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from helpers.backbones import small_net, some_images
from helpers.device_questions import crossings, without_autocast
from tta.methods import ETA, BNAdapt, Method, Source, Tent
from tta.methods.graphs import SETTLED_AFTER, Step
from tta.methods.onepass import OnePass, capture
from tta.methods.rdumb import RDumb
from tta.methods.rotta import RoTTA
from tta.objectives import COME, DEM, EM, SLR, AdaDEM

SGD = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)
METHODS: dict[str, Callable[[nn.Module], OnePass]] = {
    "source": Source,
    "bn_adapt": BNAdapt,
    "tent": lambda net: Tent(net, EM(), SGD),
    "tent with Adam": lambda net: Tent(net, EM(), ADAM),
    "adadem": lambda net: Tent(net, AdaDEM(), SGD),
    "adadem with Adam": lambda net: Tent(net, AdaDEM(), ADAM),
    "dem": lambda net: Tent(net, DEM(1.3, 0.8), SGD),
    "come": lambda net: Tent(net, COME(), SGD),
    "slr": lambda net: Tent(net, SLR(), SGD),
    "eta": lambda net: ETA(net, EM(), SGD, margin=0.9, diversity=0.9),
    "eta with AdaDEM and Adam": lambda net: ETA(net, AdaDEM(), ADAM, margin=0.9, diversity=0.9),
}
each_method = pytest.mark.parametrize("name", METHODS)


@pytest.mark.parametrize("name", [name for name in METHODS if "Adam" not in name])  # Adam's capturable is torch's own
@pytest.mark.parametrize("half", [False, True])
def test_a_step_crosses_no_devices_and_asks_for_no_value(
    name: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_autocast(monkeypatch, half)
    method = METHODS[name](small_net("batch").to("meta"))
    assert not crossings(method, torch.zeros(8, 3, 8, 8, device="meta"))


def test_what_crosses_devices_is_seen() -> None:
    assert crossings(lambda x: x + torch.zeros(8).to("meta"), torch.zeros(8, device="meta")) == ["_to_copy.default"]


def places(method: Method) -> dict[str, int]:
    """Where in memory each tensor is that a method keeps."""
    found = {name: tensor.data_ptr() for name, tensor in (*method.named_parameters(), *method.named_buffers())}
    for held, optimizer in vars(method).items():
        if isinstance(optimizer, Optimizer):
            for number, state in enumerate(optimizer.state.values()):
                found |= {f"{held}.{number}.{k}": v.data_ptr() for k, v in state.items() if isinstance(v, Tensor)}
    return found


def others(method: Method) -> dict[str, Any]:
    """What a method keeps beside tensors, as far as it can be compared."""
    return {
        f"{place}.{name}": value
        for place, module in method.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | tuple) and name not in ("images_seen", "batches_seen")
    }


@each_method
def test_from_its_second_step_on_a_method_changes_tensors_in_their_places_alone(name: str) -> None:
    method = METHODS[name](small_net("batch"))
    method(some_images(seed=0))
    before, besides = places(method), others(method)
    method(some_images(seed=1))
    assert places(method) == before
    assert others(method) == besides


class Tape:
    """Stands in for a CUDA graph: recording computes nothing, replaying does what the step does to tensors."""

    made: ClassVar[list[Tape]] = []

    def __init__(self, step: Step, images: Tensor) -> None:
        self.made.append(self)
        self.step, self.images, self.replays = step, images.clone(), 0

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self.replays += 1
        return self.step(self.images.copy_(images))


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    monkeypatch.setattr(Tape, "made", [])
    return Tape.made


SIZES = [8] * (SETTLED_AFTER + 2) + [5] + [8, 8]


@each_method
def test_what_is_recorded_is_replayed_and_a_last_batch_is_stepped(name: str, tapes: list[Tape]) -> None:
    captured, eager = METHODS[name](small_net("batch")), METHODS[name](small_net("batch"))
    captured.capture(Tape)
    for round_ in range(2):
        for seed, size in enumerate(SIZES):
            images = some_images(size, seed)
            assert torch.equal(captured(images), eager(images))
            assert captured.diagnostics == eager.diagnostics
        assert len(tapes) == round_ + 1  # a reset makes the graph anew
        assert tapes[-1].replays == len(SIZES) - SETTLED_AFTER - 1
        captured.reset()
        eager.reset()
    assert captured.batches_seen == eager.batches_seen


def test_batches_that_change_their_size_before_it_is_captured_begin_the_count_anew(tapes: list[Tape]) -> None:
    method = BNAdapt(small_net("batch"))
    method.capture(Tape)
    for size in [4] * SETTLED_AFTER + [8] * SETTLED_AFTER:
        method(some_images(size))
    assert not tapes
    method(some_images(8))
    assert len(tapes) == 1


REFUSED: Mapping[str, Callable[[nn.Module], Method]] = {
    "RoTTA": lambda net: RoTTA(net, SGD),
    "RDumb": lambda net: RDumb(net, EM(), SGD),
    "Tent": lambda net: Tent(net, EM(), SGD, steps=2),
    "ETA": lambda net: ETA(net, EM(), SGD, window=8),
}


@pytest.mark.parametrize("name", REFUSED)
def test_steps_that_are_more_than_one_pass_are_refused(name: str) -> None:
    message = f"graph=true captures one forward pass, one backward pass and one update; a step of {name} is more than"
    with pytest.raises(ValueError, match=message):
        capture(REFUSED[name](small_net("batch")), torch.device("cuda"))


def test_a_cpu_has_no_graphs() -> None:
    message = "graph=true is for GPUs, and this run is on device=cpu: run it with graph=false"
    with pytest.raises(ValueError, match=message):
        capture(BNAdapt(small_net("batch")), torch.device("cpu"))


@pytest.mark.gpu
@each_method
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_a_graph_predicts_and_learns_as_steps_do_and_waits_for_nothing(
    name: str, precision: torch.dtype | None
) -> None:
    captured, eager = (METHODS[name](small_net("batch").cuda()) for _ in range(2))
    captured.capture()
    with torch.autocast("cuda", precision or torch.bfloat16, enabled=precision is not None):
        for _ in range(2):
            for seed, size in enumerate(SIZES):
                images = some_images(size, seed).cuda()
                replayed = captured._graphed is not None and captured._graphed._recording is not None and size == 8
                torch.cuda.set_sync_debug_mode("error" if replayed else "default")
                try:
                    logits = captured(images)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                torch.testing.assert_close(logits, eager(images), rtol=1e-3, atol=1e-3)
                for key, value in eager.diagnostics.items():
                    torch.testing.assert_close(captured.diagnostics[key], value, rtol=1e-3, atol=1e-3)
            captured.reset()
            eager.reset()


@pytest.mark.gpu
def test_what_no_graph_can_hold_says_so() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net("batch")

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if float(x.sum()) else self.net(-x)

    method = BNAdapt(Asking().cuda())
    method.capture()
    images = some_images().cuda()
    for _ in range(SETTLED_AFTER):
        method(images)
    with pytest.raises(RuntimeError, match="a step of this method and backbone cannot be captured as a CUDA graph"):
        method(images)
