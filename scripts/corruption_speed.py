"""A corruption of ours, and the recipe in NumPy and OpenCV: how fast they are."""

from __future__ import annotations

import time

import cv2
import numpy as np
import torch
from plain_corruptions import plain
from timing import medians

from tta.corruptions import SCALES, corrupt

cv2.setNumThreads(1)


def speeds(name: str, severity: int, size: int, count: int, device: torch.device, rounds: int) -> tuple[float, float]:
    """Images per second of ours, in batches, and of the recipe, image by image on one core."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    images, index, few = (smooth * 255).to(torch.uint8).to(device), torch.arange(count), min(count, 2)
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()) for image in images[:few]]
    constants, rng = SCALES[size][name][severity - 1], np.random.default_rng(0)

    def ours() -> None:
        corrupt(images, name, severity, index=index)

    def recipe() -> None:
        for array in arrays:
            plain(array, name, constants, rng)

    # On one core its time is what counts, whatever else the machine does meanwhile.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = medians({"ours": ours, "recipe": recipe}, device, rounds, clock=clock)
    return count / seconds["ours"], few / seconds["recipe"]
