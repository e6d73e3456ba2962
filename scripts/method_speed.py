"""A batch of a method, and of the frozen backbone alone: what to time, and how much memory it needs."""

from __future__ import annotations

import multiprocessing
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch

from tta.cli import CONFIGS
from tta.models import timm_backbone
from tta.utils.devices import to_device

FORWARD = "forward"


@dataclass(frozen=True)
class Workload:
    """A batch of random images for a timm model with random weights."""

    model: str
    batch: int
    size: int
    device: torch.device
    threads: int

    def step(self, method: str) -> Callable[[], None]:
        """Make a function that gives the batch to a method, or to the frozen backbone alone (``forward``)."""
        torch.set_num_threads(self.threads)
        warnings.filterwarnings("ignore", message=".*random weights")
        torch.manual_seed(0)
        backbone = to_device(timm_backbone(self.model, pretrained=False), self.device).eval()
        images = torch.rand(self.batch, 3, self.size, self.size, device=self.device)
        if method == FORWARD:
            return torch.no_grad()(lambda: backbone(images))
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra.compose("config", [f"method={method}"])
        adapted = hydra.utils.instantiate(config.method, backbone=backbone, _convert_="all")
        return lambda: adapted(images)


def peak(work: Workload, method: str) -> int:
    """Bytes that three batches need at most, beyond what is there before the first; in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_here, work, method).result()


def _peak_here(work: Workload, method: str) -> int:
    step, on_gpu = work.step(method), work.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(work.device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the process begins anew (Linux)
    before = torch.cuda.memory_allocated(work.device) if on_gpu else device_resident("VmRSS")
    for _ in range(3):
        step()
    return (torch.cuda.max_memory_allocated(work.device) if on_gpu else device_resident("VmHWM")) - before


def device_resident(key: str) -> int:
    """Bytes of memory that this process holds (VmRSS), or held at most (VmHWM)."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
