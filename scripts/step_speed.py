"""Tent as a script of a few lines writes it, ours, and what a step is made of: what to time."""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from method_speed import device_resident
from timing import medians
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import ToTensor

from tta.methods import Tent
from tta.models import Backbone
from tta.objectives import EM, AdaDEM, Objective
from tta.runner import Runner
from tta.runs.directory import RunDirectory
from tta.streams import Domain, Scenario, Stream
from tta.streams.arrays import ArrayImages
from tta.utils.devices import choose_precision, to_device, tune_malloc

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR = 1e-3


@dataclass(frozen=True)
class Shape:
    """A network with random weights, and the images that it is for."""

    size: int
    batch: int
    classes: int

    def net(self) -> nn.Module:
        """Make it: a ResNet-50, or for 32 pixels a ResNet-18 of a quarter of the width, without the stem's strides."""
        torch.manual_seed(0)
        if self.size > 32:
            return timm.create_model("resnet50", num_classes=self.classes).eval()
        net = timm.create_model("resnet18", num_classes=self.classes, channels=(16, 32, 64, 128)).eval()
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
        return net

    def backbone(self) -> Backbone:
        """Make it as ours."""
        return Backbone(self.net(), self.classes, MEAN, STD, "random").eval()

    def arrays(self, batches: int) -> tuple[np.ndarray, Tensor]:
        """Draw images, uint8 (N, H, W, 3), and labels (N,)."""
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (batches * self.batch, self.size, self.size, 3), np.uint8)
        return pixels, torch.from_numpy(rng.integers(0, self.classes, len(pixels)))


SHAPES = {
    "ResNet-18, a quarter as wide, 32 px, batch 200": Shape(32, 200, 10),
    "ResNet-50, 224 px, batch 32": Shape(224, 32, 1000),
}


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Arrays as official scripts have them: ``ToTensor`` image by image."""

    def __init__(self, pixels: np.ndarray, labels: Tensor) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, ToTensor()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.pixels[index]), self.labels[index]


def plain_run(shape: Shape, batches: int, device: torch.device) -> float:
    """Seconds of Tent as a plain script: eager, fp32, NCHW, a DataLoader, and the accuracy asked for in each batch."""
    net = shape.net().requires_grad_(False)
    parameters = []
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.train()
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
            parameters += [module.weight.requires_grad_(), module.bias.requires_grad_()]
    net.to(device)
    optimizer = torch.optim.SGD(parameters, lr=LR)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    loader = DataLoader(Images(*shape.arrays(batches)), shape.batch, shuffle=True)
    right, began = 0, time.perf_counter()
    for images, labels in loader:
        logits = net((images.to(device) - mean) / std)
        loss = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        right += (logits.argmax(1) == labels.to(device)).sum().item()
    return time.perf_counter() - began


def our_run(shape: Shape, batches: int, device: torch.device, precision: str) -> float:
    """Seconds of a run of ours, its files included."""
    pixels, labels = shape.arrays(batches)
    stream = Stream([Domain("noise", 5, labels, ArrayImages(pixels))], shape.classes, shape.batch)
    method = tent(shape, device)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        runner = Runner(method, stream, Scenario(), 0, directory, [], device, choose_precision(precision, device))
        began = time.perf_counter()
        runner.run()
        return time.perf_counter() - began


def outside(shape: Shape, batches: int, device: torch.device) -> str:
    """Share of a run's time that is not the method's: reading, metrics, rows and files."""
    pixels, labels = shape.arrays(batches)
    stream = Stream([Domain("noise", 5, labels, ArrayImages(pixels))], shape.classes, shape.batch)
    for _ in range(2):  # the first run of a process also imports what rows are made with
        share = _share_outside(stream, tent(shape, device), device)
    return f"{100 * share:.1f} %"


def _share_outside(stream: Stream, method: Tent, device: torch.device) -> float:
    marks: list[float] = []

    def mark(*_: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    method.register_forward_pre_hook(mark)
    method.register_forward_hook(mark)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        Runner(method, stream, Scenario(), 0, RunDirectory(Path(folder)), [], device).run()
        seconds = time.perf_counter() - began
    inside = sum(end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True))
    return 1 - inside / seconds


def tent(shape: Shape, device: torch.device, objective: Objective | None = None) -> Tent:
    """Make Tent, with EM or another objective."""
    sgd = functools.partial(torch.optim.SGD, lr=LR)
    return Tent(to_device(shape.backbone(), device), objective or EM(), sgd).to(device)


class Elsewhere:
    """A function in a process of its own, which stays: what it does to memory concerns no other."""

    def __init__(self, ours: bool, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(ours, threads))

    def __call__(self, function: Callable[..., float], *arguments: object) -> tuple[float, float]:
        """Give what the function returns, and the most bytes that the process, or the GPU, had to hold so far."""
        return self._pool.submit(_measured, function, *arguments).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _begin(ours: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    if ours:
        tune_malloc()  # as the command does


def _measured(function: Callable[..., float], *arguments: object) -> tuple[float, float]:
    value = function(*arguments)
    if torch.cuda.is_available():
        return value, torch.cuda.max_memory_allocated()
    return value, device_resident("VmHWM")


def runs(
    shape: Shape, batches: int, precisions: Sequence[str], threads: int, device: torch.device, rounds: int
) -> dict[str, str]:
    """Seconds and memory of whole runs, a process for each kind, which take turns."""
    plain = "run, plain script (fp32)"
    work: dict[str, tuple[Any, ...]] = {plain: (plain_run, shape, batches, device)}
    work |= {f"run, ours, {precision}": (our_run, shape, batches, device, precision) for precision in precisions}
    processes = {name: Elsewhere(name != plain, threads) for name in work}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for number in range(-1, rounds):  # the first only warms up
        for name, process in processes.items():
            result = process(*work[name])
            if number >= 0:
                measured[name].append(result)
    for process in processes.values():
        process.close()
    seconds = {name: statistics.median(second for second, _ in results) for name, results in measured.items()}
    bytes_ = {name: max(peak for _, peak in results) for name, results in measured.items()}
    cells = {plain: f"{seconds[plain]:.2f} s, {bytes_[plain] / 2**20:.0f} MiB"}
    for name in list(work)[1:]:
        faster, more = seconds[plain] / seconds[name], bytes_[name] / bytes_[plain]
        cells[name] = f"{faster:.2f} times as fast, {more:.2f} of the memory"
    return cells


def step_flops(shape: Shape) -> int:
    """Floating-point operations of a step: products and sums of the convolutions and the classifier, forth and back."""
    method, images = tent(shape, torch.device("cpu")), torch.rand(2, 3, shape.size, shape.size)
    with FlopCounterMode(display=False) as counter:
        method(images)
    return counter.get_total_flops() * shape.batch // 2


def matrix_product(device: torch.device, precision: str, n: int = 2048) -> tuple[Callable[[], object], int]:
    """Make a function that multiplies two matrices, and say how many operations that takes."""
    dtype = choose_precision(precision, device).dtype or torch.float32
    a, b = torch.rand(2, n, n, device=device).to(dtype)
    return lambda: a @ b, 2 * n**3


def steps(shape: Shape, device: torch.device, precision: str, rounds: int) -> dict[str, str]:
    """Tell a step of Tent against a forward pass of the frozen backbone, AdaDEM against EM, and the machine's speed."""
    computes_in, backbone = choose_precision(precision, device), to_device(shape.backbone(), device)
    images = torch.rand(shape.batch, 3, shape.size, shape.size, device=device)

    def through(module: nn.Module) -> Callable[[], None]:
        def step() -> None:
            with computes_in.autocast(device):
                module(images)

        return step

    ways = {"EM": through(tent(shape, device)), "AdaDEM": through(tent(shape, device, AdaDEM()))}
    seconds = medians({"forward": torch.no_grad()(through(backbone)), **ways}, device, rounds)
    product, operations = matrix_product(device, precision)
    rate = operations / medians({"product": product}, device, rounds)["product"]
    share = step_flops(shape) / seconds["EM"] / rate
    return {
        "step over forward pass": f"{seconds['EM'] / seconds['forward']:.2f}",
        "AdaDEM's step over EM's": f"{seconds['AdaDEM'] / seconds['EM']:.3f}",
        "step's FLOP/s over those of a matrix product": f"{share:.2f} of {rate / 1e9:.0f} GFLOP/s",
    }
