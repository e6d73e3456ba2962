"""What every method promises, for every configuration in configs/method: a new one is covered without a change here."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch

from helpers.backbones import CLASSES, small_net, some_images
from helpers.compositions import composed
from helpers.device_questions import DeviceQuestions, crossings, without_autocast
from tta.cli import CONFIGS
from tta.methods import Method

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
KINDS = ("batch", "layer", "group")
SMALL = {"memo": ("method.augmentations=2",)}  # what makes a method quick enough for all of these
WAITING = {"cotta", "deyo", "memo", "roid", "rotta", "t3a"}
"""Methods whose nature makes the host wait for the device; their docstrings say for what."""
RANDOM = {"cotta", "memo"}
"""Methods whose predictions depend on random numbers, which a GPU draws differently."""
pytestmark = [
    pytest.mark.parametrize("name", METHODS),
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.usefixtures("demo_cache"),  # what methods make once goes there
]


def make(name: str, kind: str, overrides: tuple[str, ...] = (), backbone: torch.nn.Module | None = None) -> Method:
    config = composed(f"method={name}", "optimizer.lr=0.1", *SMALL.get(name, ()), *overrides)
    return hydra.utils.instantiate(config.method, backbone=backbone or small_net(kind), _convert_="all")


def predict(method: Method, seeds: range) -> list[torch.Tensor]:
    return [method(some_images(seed=seed)) for seed in seeds]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


def test_gives_finite_detached_logits(name: str, kind: str) -> None:
    method = make(name, kind)
    for logits in predict(method, range(3)):
        assert logits.shape == (8, CLASSES)
        assert logits.isfinite().all()
        assert not logits.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_callers_gradient_mode_and_eval_change_nothing(name: str, kind: str, mode: Any) -> None:
    expected = predict(make(name, kind), range(3))
    method = make(name, kind)
    method.eval()
    with mode():
        assert_same(predict(method, range(3)), expected)
    method = make(name, kind)
    method.train()
    assert_same(predict(method, range(3)), expected)


def test_takes_images_of_any_memory_format(name: str, kind: str) -> None:
    method = make(name, kind)
    for seed in range(2):
        images = some_images(seed=seed).contiguous(memory_format=torch.channels_last)  # as files are read
        assert method(images).isfinite().all()


def test_sees_images_alone(name: str, kind: str) -> None:
    assert list(inspect.signature(make(name, kind).forward).parameters) == ["images"]


def test_leaves_the_given_backbone_alone_and_changes_declared_parameters_only(name: str, kind: str) -> None:
    given = small_net(kind)
    before = tensors(given)
    method = make(name, kind, backbone=given)
    used = 0.0
    for seed in range(3):
        predict(method, range(seed, seed + 1))
        used += float(method.diagnostics.get("used", 1))
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    declared = {key for key, p in method.backbone.named_parameters() if p.requires_grad}
    changed = {key for key, p in method.backbone.named_parameters() if not torch.equal(p, before[key])}
    assert changed <= declared
    # A method that selects samples may have used none, and then changes nothing.
    assert bool(changed) == bool(declared and used and not method.episodic)


def test_reset_goes_back_bit_by_bit(name: str, kind: str) -> None:
    method = make(name, kind)
    first = predict(method, range(4))
    method.reset()
    assert_same(predict(method, range(4)), first)


def test_reset_restores_in_place(name: str, kind: str) -> None:
    method = make(name, kind)
    places = [p.data_ptr() for p in method.parameters()]
    predict(method, range(2))
    method.reset()
    assert [p.data_ptr() for p in method.parameters()] == places


def test_a_saved_state_continues_bit_by_bit_in_a_fresh_object(name: str, kind: str, tmp_path: Path) -> None:
    method = make(name, kind)
    first = predict(method, range(2))
    torch.save(method.state_dict(), tmp_path / "state.pt")
    expected = predict(method, range(2, 5))
    fresh = make(name, kind)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(predict(fresh, range(2, 5)), expected)
    fresh.reset()  # to where the object began, not to where it was continued from
    assert_same(predict(fresh, range(2)), first)


def test_two_objects_share_nothing(name: str, kind: str) -> None:
    expected = predict(make(name, kind), range(2))
    one, other = make(name, kind), make(name, kind)
    predict(one, range(5, 8))
    assert_same(predict(other, range(2)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_works_in_autocast(name: str, kind: str, dtype: torch.dtype) -> None:
    method = make(name, kind)
    with torch.autocast("cpu", dtype):
        for logits in predict(method, range(2)):
            assert logits.isfinite().all()


def test_predictions_that_say_nothing_leave_no_nan(name: str, kind: str) -> None:
    net = small_net(kind)
    with torch.no_grad():
        net.head.weight.zero_()  # uniform predictions: entropy ln C, so that a method that selects sure ones has none
        net.head.bias.zero_()
    method = make(name, kind, backbone=net)
    for logits in predict(method, range(3)):
        assert logits.isfinite().all()
    assert all(parameter.isfinite().all() for parameter in method.parameters())


def test_a_single_image_is_predicted_or_refused_with_a_reason(name: str, kind: str) -> None:
    method = make(name, kind)
    if method.min_batch_size == 1:
        assert method(some_images(1)).isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"at least 2 images in every batch for .*, got a batch of 1"):
            method(some_images(1))


def test_single_images_work_with_a_window_where_there_is_one(name: str, kind: str) -> None:
    if "window" not in composed(f"method={name}").method:
        return
    method = make(name, kind, ("method.window=4",))
    outputs = [method(image[None]) for image in some_images(6)]
    assert all(logits.shape == (1, CLASSES) and logits.isfinite().all() for logits in outputs)


def test_reports_scalars_on_the_device(name: str, kind: str) -> None:
    method = make(name, kind)
    predict(method, range(1))
    assert set(method.diagnostics) <= {"loss", "used"}
    assert all(value.ndim == 0 and not value.requires_grad for value in method.diagnostics.values())


def test_a_step_waits_for_the_device_only_where_the_method_says_so(name: str, kind: str) -> None:
    method = make(name, kind)
    predict(method, range(2))  # tables of the size of the first batch are there by now
    with DeviceQuestions() as questions:
        predict(method, range(2, 3))
    assert not questions.asked or name in WAITING


@pytest.mark.parametrize("half", [False, True])
def test_a_step_stays_on_the_backbones_device(
    name: str, kind: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in WAITING or name == "eata":  # EATA when it is made, for its Fisher information
        pytest.skip("asks for values, which tensors on meta have not")
    without_autocast(monkeypatch, half)
    method = make(name, kind, backbone=small_net(kind).to("meta"))
    assert not crossings(method, some_images().to("meta"))


@pytest.mark.gpu
def test_predicts_on_the_gpu_as_on_the_cpu_and_waits_only_where_the_method_says_so(name: str, kind: str) -> None:
    expected = predict(make(name, kind), range(1))
    method = make(name, kind, backbone=small_net(kind).cuda())
    batches = [some_images(seed=seed).cuda() for seed in range(4)]
    first = [method(images) for images in batches]
    if name not in RANDOM:
        torch.testing.assert_close(first[0].cpu(), expected[0], rtol=1e-3, atol=1e-3)
    torch.cuda.set_sync_debug_mode("default" if name in WAITING else "error")
    try:
        method.reset()
        again = [method(images) for images in batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(first, again, strict=True))


def test_can_be_copied(name: str, kind: str) -> None:
    method = make(name, kind)
    predict(method, range(2))
    twin = copy.deepcopy(method)
    assert_same(predict(twin, range(2, 4)), predict(method, range(2, 4)))
