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
from tta.backbones import Backbone, timm_backbone
from tta.devices import choose_device, choose_precision, describe_device, keep_memory, place
from tta.methods import Tent
from tta.objectives import EM

CPU = torch.device("cpu")


@pytest.fixture
def cuda_devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make torch see so many CUDA devices."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


@pytest.mark.parametrize(("count", "kind"), [(0, "cpu"), (2, "cuda")])
def test_auto_takes_a_cuda_device_where_there_is_one(cuda_devices: Any, count: int, kind: str) -> None:
    cuda_devices(count)
    assert choose_device("auto") == torch.device(kind)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_a_device_that_is_there_is_taken(cuda_devices: Any, name: str) -> None:
    cuda_devices(2)
    assert choose_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("count", "name", "there"), [(0, "cuda", "none"), (0, "cuda:0", "none"), (2, "cuda:2", "cuda:0 to cuda:1")]
)
def test_a_device_that_is_not_there(cuda_devices: Any, count: int, name: str, there: str) -> None:
    cuda_devices(count)
    with pytest.raises(ValueError, match=f"device={name}: torch .* sees these CUDA devices: {there}; use device=cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["tpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "CUDA", "", 0, None], ids=repr)
def test_wrong_name(cuda_devices: Any, name: Any) -> None:
    cuda_devices(1)
    with pytest.raises(ValueError, match=f"device must be auto, cpu, cuda or cuda:<number>, got {name!r}"):
        choose_device(name)


def test_description_of_the_cpu_says_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, name in ((1, "cpu (1 thread)"), (2, "cpu (2 threads)")):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=threads: number)
        assert describe_device(torch.device("cpu")) == name


def test_description_of_a_gpu_says_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
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
@pytest.mark.parametrize("before", [False, True])
def test_precision(restored_tf32: None, name: str, dtype: torch.dtype | None, tf32: bool, before: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before
    with choose_precision(name, torch.device("cuda")).on(CPU):
        product = torch.ones(1, 1) @ torch.ones(1, 1)
    assert product.dtype == (dtype or torch.float32)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)


def test_wrong_precision() -> None:
    with pytest.raises(ValueError, match=r"precision must be one of fp32, tf32, bf16, fp16; got 'fp8'"):
        choose_precision("fp8", CPU)


def test_a_cpu_has_no_tf32() -> None:
    with pytest.raises(ValueError, match="precision=tf32 is of a GPU's tensor cores: on a CPU take fp32 or bf16"):
        choose_precision("tf32", CPU)


@pytest.mark.parametrize(("kind", "channels_last"), [("batch", True), ("none", True), ("group", False)])
def test_a_cpu_gets_convolutions_in_the_format_it_is_fast_with(kind: str, channels_last: bool) -> None:
    backbone = place(small_net(kind), CPU)
    weights = backbone.get_parameter("body.3.weight")
    assert weights.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weights.is_contiguous() != channels_last


def _tent(backbone: Backbone) -> Tent:
    return Tent(backbone, EM(), functools.partial(torch.optim.SGD, lr=0.05))


def test_the_format_changes_logits_by_rounding_alone(cifar_resnet18: Backbone, shared: Path) -> None:
    with np.load(shared / "data" / "cifar10_test.npz") as file:
        images = torch.from_numpy(file["images"][:100]).permute(0, 3, 1, 2).float() / 255
    exact = _tent(copy.deepcopy(cifar_resnet18).double())(images.double())
    for there in (images, images.contiguous()):
        logits = _tent(place(copy.deepcopy(cifar_resnet18), CPU))(there)
        assert (logits - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize(
    ("name", "size"), [("test_efficientnet", 64), ("convnext_atto", 64), ("test_vit", 160), ("resnet10t", 64)]
)
def test_the_format_changes_updates_by_rounding_alone(name: str, size: int) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="random weights"):
        backbone = timm_backbone(name, pretrained=False).eval()
    images = torch.rand(4, 3, size, size)
    exact, ours = _tent(copy.deepcopy(backbone).double()), _tent(place(backbone, CPU))
    for _ in range(2):
        theirs, logits = exact(images.double()), ours(images)
        assert (logits - theirs).norm() <= 1e-4 * theirs.norm()


FAULTS = """
import resource, sys, torch
from tta.devices import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
for number in range(40):
    if number == 30:  # the heap has found its shape
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10, 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_memory_that_is_kept_need_not_be_fetched_page_by_page() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert 10 * faults("keep") < faults("leave")


@pytest.mark.parametrize("library", [object(), OSError("there is none")])
def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    def find(name: None) -> Any:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", find)
    assert not keep_memory()
