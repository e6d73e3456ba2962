"""Choice of device, precision and memory format; memory that a process keeps."""

from __future__ import annotations

import copy
import ctypes
import functools
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.backbones import small_net
from helpers.errors import raises_naming
from tta.methods import Tent
from tta.models import Backbone, timm_backbone
from tta.objectives import EM
from tta.utils.devices import choose_device, choose_precision, describe_device, to_device, tune_malloc

CPU = torch.device("cpu")


@pytest.fixture
def cuda_devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make torch see so many CUDA devices."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


@pytest.mark.parametrize(
    ("count", "name", "device"),
    [(0, "auto", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu"), (2, "cuda", "cuda"), (2, "cuda:1", "cuda:1")],
)
def test_device__is_chosen_by_name(cuda_devices: Any, count: int, name: str, device: str) -> None:
    cuda_devices(count)
    assert choose_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("count", "name", "there"), [(0, "cuda", ["none"]), (0, "cuda:0", ["none"]), (2, "cuda:2", ["cuda:0", "cuda:1"])]
)
def test_device__must_be_there(cuda_devices: Any, count: int, name: str, there: list[str]) -> None:
    cuda_devices(count)
    with raises_naming(ValueError, f"device={name}", *there, "device=cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["tpu", "cpu:0", "cuda:", "cuda:-1", None], ids=repr)
def test_device__rejects_unknown_names(cuda_devices: Any, name: Any) -> None:
    cuda_devices(1)
    with raises_naming(ValueError, "device", "auto", "cpu", "cuda:<number>", repr(name)):
        choose_device(name)


def test_describe_device__names_threads_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, name in ((1, "cpu (1 thread)"), (2, "cpu (2 threads)")):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=threads: number)
        assert describe_device(CPU) == name
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"model {device.index}")
    assert describe_device(torch.device("cuda:1")) == "cuda:1 (model 1)"


@pytest.fixture
def restored_tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("name", "dtype", "tf32"),
    [("fp32", None, False), ("tf32", None, True), ("bf16", torch.bfloat16, False), ("fp16", torch.float16, False)],
)
@pytest.mark.usefixtures("restored_tf32")
def test_precision__sets_autocast_and_tf32(name: str, dtype: torch.dtype | None, tf32: bool) -> None:
    for before in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before
        with choose_precision(name, torch.device("cuda")).autocast(CPU):
            product = torch.ones(1, 1) @ torch.ones(1, 1)
        assert product.dtype == (dtype or torch.float32)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)


def test_precision__rejects_unknown_names() -> None:
    with raises_naming(ValueError, "precision", "'fp8'", "fp32", "tf32", "bf16", "fp16"):
        choose_precision("fp8", CPU)
    with raises_naming(ValueError, "precision=tf32", "CPU", "fp32", "bf16"):
        choose_precision("tf32", CPU)


@pytest.mark.parametrize(("kind", "channels_last"), [("batch", True), ("group", False)])
def test_place__prefers_channels_last_on_a_cpu(kind: str, channels_last: bool) -> None:
    """Except for networks with GroupNorm."""
    backbone = to_device(small_net(kind), CPU)
    weights = backbone.get_parameter("body.3.weight")
    assert weights.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weights.is_contiguous() != channels_last


def tent(backbone: Backbone) -> Tent:
    return Tent(backbone, EM(), functools.partial(torch.optim.SGD, lr=0.05))


def test_place__changes_logits_by_rounding_only(cifar_resnet18: Backbone, shared: Path) -> None:
    with np.load(shared / "data" / "cifar10_test.npz") as file:
        images = torch.from_numpy(file["images"][:40]).permute(0, 3, 1, 2).float() / 255
    exact = tent(copy.deepcopy(cifar_resnet18).double())(images.double())
    for there in (images, images.contiguous()):
        logits = tent(to_device(copy.deepcopy(cifar_resnet18), CPU))(there)
        assert (logits - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize(("name", "size"), [("test_efficientnet", 64), ("convnext_atto", 64), ("test_vit", 160)])
def test_place__changes_updates_by_rounding_only(name: str, size: int) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=name):
        backbone = timm_backbone(name, pretrained=False).eval()
    images = torch.rand(4, 3, size, size)
    exact, ours = tent(copy.deepcopy(backbone).double()), tent(to_device(backbone, CPU))
    for _ in range(2):
        theirs, logits = exact(images.double()), ours(images)
        assert (logits - theirs).norm() <= 1e-4 * theirs.norm()


FAULTS = """
import resource, sys, torch
from tta.utils.devices import tune_malloc
if sys.argv[1] == "keep":
    assert tune_malloc()
for number in range(40):
    if number == 30:  # the heap has found its shape
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10, 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_tune_malloc__avoids_page_faults() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert 10 * faults("keep") < faults("leave")


@pytest.mark.parametrize("library", [object(), OSError("there is none")])
def test_tune_malloc__skips_other_c_libraries(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    def find(name: None) -> Any:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", find)
    assert not tune_malloc()
