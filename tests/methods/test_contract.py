"""What every method promises, for every configuration in configs/method."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.all_methods import METHODS, make_method
from helpers.backbones import CLASSES, small_net, some_images
from helpers.compositions import composed
from helpers.device_questions import DeviceQuestions, crossings, without_autocast
from helpers.errors import raises_naming
from tta.methods import MEMO, Method

KINDS = ("batch", "layer", "group")
WAITING = {"cotta", "deyo", "memo", "roid", "rotta", "t3a"}
"""Methods whose nature makes the host wait for the device; their docstrings say for what."""
DECIDING = {"eata", "eta", "rdumb", "sar"}
"""Methods that ask the device whether any sample is used, and SAR whether it recovers."""
CLEAN = {"eata"}
"""Methods that need the values of clean images when they are made."""
RANDOM = {"cotta", "memo"}
"""Methods whose predictions depend on random numbers, which other devices and precisions draw differently."""
EPISODIC = {"memo"}
"""Methods that begin every image with the source weights."""
NEEDS_BATCH = {"adadem", "bn_adapt", "cotta", "deyo", "eata", "eta", "rdumb", "roid", "sar", "tent"}
"""Methods that refuse a single image where there is BatchNorm."""

pytestmark = pytest.mark.usefixtures("demo_cache")  # what methods make once goes there
each_method = pytest.mark.parametrize("name", METHODS)


def make(name: str, kind: str = "batch", **arguments: Any) -> Method:
    return make_method(name, small_net(kind), **arguments)


def batches(method: Method, seeds: Iterable[int]) -> list[Tensor]:
    size = 2 if isinstance(method, MEMO) else 8  # it takes each image by itself, and its time
    return [some_images(size, seed) for seed in seeds]


def predict(method: Method, seeds: Iterable[int]) -> list[Tensor]:
    return [method(images) for images in batches(method, seeds)]


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    """Assert equal bits: the same computation on the same machine."""
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_method
@pytest.mark.parametrize("kind", KINDS)
def test_method__gives_logits_and_learns(name: str, kind: str) -> None:
    """Logits, diagnostics, and which parameters change: of the given backbone none, of the method declared ones."""
    given = small_net(kind)
    method = make_method(name, given)
    start, used = {key: p.detach().clone() for key, p in method.named_parameters()}, 0.0
    for images in batches(method, range(3)):
        logits = method(images)
        assert logits.shape == (len(images), CLASSES)
        assert logits.isfinite().all()
        assert not logits.requires_grad
        assert set(method.diagnostics) <= {"loss", "used"}
        assert all(value.ndim == 0 and not value.requires_grad for value in method.diagnostics.values())
        used += float(method.diagnostics.get("used", 1))
    before = small_net(kind).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert all(p.requires_grad for p in given.parameters())
    declared = {key for key, p in method.named_parameters() if p.requires_grad}
    changed = {key for key, p in method.named_parameters() if not torch.equal(p, start[key])}
    assert {key for key in changed if not key.startswith("teacher.")} <= declared
    # A method that selects samples may have used none, and then changes nothing.
    assert bool(changed) == bool(declared and used and name not in EPISODIC)


@each_method
def test_method__takes_images_alone(name: str) -> None:
    """There is no way for labels to reach it."""
    method = make(name)
    assert list(inspect.signature(method.forward).parameters) == ["images"]
    with pytest.raises(TypeError):
        method(some_images(), torch.zeros(8, dtype=torch.long))


@each_method
def test_method__reset_restores_in_place(name: str) -> None:
    method = make(name)
    start, places = [p.clone() for p in method.parameters()], [p.data_ptr() for p in method.parameters()]
    first = predict(method, range(3))
    method.reset()
    assert [p.data_ptr() for p in method.parameters()] == places
    assert_same(list(method.parameters()), start)
    assert not method.diagnostics
    assert_same(predict(method, range(3)), first)


@each_method
def test_method__callers_modes_change_nothing(name: str) -> None:
    expected = predict(make(name), range(3))
    for mode in (torch.no_grad, torch.inference_mode):
        method = make(name)
        method.eval()
        with mode():
            assert_same(predict(method, range(3)), expected)
    method = make(name)
    method.train()
    assert_same(predict(method, range(3)), expected)


@each_method
def test_method__takes_channels_last_images(name: str) -> None:
    method = make(name)
    given = [method(images.contiguous(memory_format=torch.channels_last)) for images in batches(method, range(2))]
    for logits, expected in zip(given, predict(make(name), range(2)), strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@each_method
def test_method__saved_state_continues(name: str, tmp_path: Path) -> None:
    method = make(name)
    first = predict(method, range(2))
    torch.save(method.state_dict(), tmp_path / "state.pt")
    expected = predict(method, range(2, 5))
    fresh = make(name)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(predict(fresh, range(2, 5)), expected)
    fresh.reset()  # to where the object began, not to where it was continued from
    assert_same(predict(fresh, range(2)), first)


@each_method
def test_method__shares_nothing_with_copies(name: str) -> None:
    method, other = make(name), make(name)
    first = predict(method, range(2))
    twin, kept = copy.deepcopy(method), [p.clone() for p in method.parameters()]
    predicted = predict(twin, range(2, 4))
    assert_same(list(method.parameters()), kept)
    assert_same(predict(method, range(2, 4)), predicted)
    twin.reset()
    for unused in (twin, other):
        assert_same(predict(unused, range(2)), first)


@pytest.mark.parametrize("name", METHODS)
def test_method__works_in_float64(name: str) -> None:
    """After ``.double()`` it predicts, resets, copies and continues from a saved state as in float32."""
    method, fresh = make(name).double(), make(name).double()
    images = [batch.double() for batch in batches(method, range(4))]
    first = [method(batch) for batch in images[:2]]
    assert all(logits.dtype == torch.float64 and logits.isfinite().all() for logits in first)
    if name not in RANDOM:
        for logits, expected in zip(first, predict(make(name), range(2)), strict=True):
            torch.testing.assert_close(logits.float(), expected, rtol=1e-3, atol=1e-3)
    twin = copy.deepcopy(method)
    fresh.load_state_dict(method.state_dict())
    second = [method(batch) for batch in images[2:]]
    for another in (twin, fresh):
        assert_same([another(batch) for batch in images[2:]], second)
        another.reset()
        assert_same([another(batch) for batch in images[:2]], first)
    assert all(p.dtype == torch.float64 for p in method.parameters())


@each_method
def test_method__works_in_autocast(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        method = make(name)
        with torch.autocast("cpu", dtype):
            for logits in predict(method, range(2)):
                assert logits.isfinite().all()


@each_method
def test_method__uniform_predictions_give_no_nan(name: str) -> None:
    """With an entropy of ln C, a method that selects sure samples has none."""
    net = small_net("batch")
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
    method = make_method(name, net)
    for logits in predict(method, range(3)):
        assert logits.isfinite().all()
    assert all(parameter.isfinite().all() for parameter in method.parameters())


@each_method
def test_method__single_image(name: str) -> None:
    """It is predicted, or refused; with a window it is always predicted."""
    windowed = "window" in composed(f"method={name}").method
    method = make(name)
    if name in NEEDS_BATCH:
        with raises_naming(ValueError, type(method).__name__, 2, "batch_size", "method.window" if windowed else ""):
            method(some_images(1))
    else:
        assert method(some_images(1)).isfinite().all()
    if windowed:
        method = make(name, window=4)
        outputs = [method(image[None]) for image in some_images(6)]
        assert all(logits.shape == (1, CLASSES) and logits.isfinite().all() for logits in outputs)


@each_method
def test_method__waits_only_where_it_says_so(name: str) -> None:
    method = make(name)
    predict(method, range(2))  # tables of the size of the first batch are there by now
    with DeviceQuestions() as questions:
        predict(method, range(2, 3))
    assert name in WAITING or len(questions.asked) <= (3 if name in DECIDING else 0), questions.asked


@pytest.mark.parametrize("name", [name for name in METHODS if name not in WAITING | DECIDING | CLEAN])
def test_method__stays_on_backbones_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device "meta" tensors have no values: a step that asks for one, or for another device, raises."""
    without_autocast(monkeypatch)
    method = make_method(name, small_net("batch").to("meta"))
    assert not crossings(method, some_images().to("meta"))


@pytest.mark.gpu
@each_method
def test_method__predicts_on_gpu_as_on_cpu(name: str) -> None:
    """It waits for the GPU only where it says so."""
    expected = predict(make(name), range(1))
    method = make_method(name, small_net("batch").cuda())
    images = [batch.cuda() for batch in batches(method, range(4))]
    first = [method(batch) for batch in images]
    if name not in RANDOM:
        torch.testing.assert_close(first[0].cpu(), expected[0], rtol=1e-3, atol=1e-3)
    torch.cuda.set_sync_debug_mode("default" if name in WAITING | DECIDING else "error")
    try:
        method.reset()
        again = [method(batch) for batch in images]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(first, again, strict=True))
