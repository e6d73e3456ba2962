"""Our streams, and the loops of official repositories, up to a batch on the device."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tta.models import Backbone
from tta.runner import to_unit_float
from tta.streams import Domain, Scenario, Stream
from tta.streams.arrays import ArrayImages
from tta.streams.files import FileImages

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, SMALL = 224, 32
MADE = 256
"""Images that are made where no folder is given."""


@contextmanager
def folder_of_images(root: Path | None) -> Iterator[Path]:
    """Give the folder, or a temporary one of JPEG files as large as those of ImageNet-C: smooth, with some noise."""
    if root is not None:
        yield root
        return
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        for number in range(MADE):
            coarse = torch.rand(1, 3, 16, 16, generator=generator)
            smooth = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic")[0]
            noisy = smooth + 0.04 * torch.randn(smooth.shape, generator=generator)
            file = Path(made) / f"class{number % 4}" / f"{number}.JPEG"
            file.parent.mkdir(exist_ok=True)
            pixels = (noisy.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels).save(file, quality=85)
        yield Path(made)


def passes_over_files(
    root: Path, count: int, batch: int, workers: int, device: torch.device, cache: Path
) -> tuple[dict[str, Callable[[], None]], dict[str, Callable[[], None]]]:
    """Make functions for the ways to read ``count`` images, the folder's again and again.

    The first of them end in normalised floats, the second in bytes, as a device is given them that does the rest.
    """
    crop = transforms.CenterCrop(SIZE)
    normalized = transforms.Compose([crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    as_bytes = transforms.Compose([crop, transforms.PILToTensor()])
    folder = ImageFolder(str(root))
    samples = [folder.samples[k % len(folder.samples)] for k in range(count)]
    labels = torch.tensor([label for _, label in samples])
    domain = Domain("clean", 0, labels, FileImages([Path(path) for path, _ in samples], SIZE, skip=False))
    plain, cached = (
        Stream([domain], len(folder.classes), batch, workers=workers, cache=how) for how in (False, str(cache))
    )
    cached.prepare()

    def official(transform: Callable[[Any], Tensor]) -> Callable[[], None]:
        images = ImageFolder(str(root), transform)
        images.samples = images.imgs = samples
        loader = DataLoader(images, batch, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda")
        return lambda: _official(loader, device)

    floats = {
        "ImageFolder and DataLoader": official(normalized),
        "ours": _ours(plain, device, MEAN, STD),
        "ours, cached": _ours(cached, device, MEAN, STD),
        "ours, cached, floats without arithmetic": lambda: _read(cached, device, lambda images: images.float().clone()),
    }
    return floats, {
        "ImageFolder and DataLoader, as bytes": official(as_bytes),
        "ours, as bytes": lambda: _read(plain, device),
        "ours, cached, as bytes": lambda: _read(cached, device),
    }


def _read(stream: Stream, device: torch.device, convert: Callable[[Tensor], Tensor] = Tensor.detach) -> None:
    for batch in stream.batches(stream.plan(Scenario(), 0), device):
        convert(batch.images.to(device, non_blocking=True))


def passes_over_arrays(count: int, batch: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """Make a function for each way to read ``count`` images of 32 pixels that are in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, SMALL, SMALL, 3), np.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    floats = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    loader = DataLoader(TensorDataset(floats, labels), batch, shuffle=True, pin_memory=device.type == "cuda")
    normalized = Backbone(nn.Identity(), 1, MEAN, STD, "").to(device)
    stream = Stream([Domain("clean", 0, labels, ArrayImages(pixels))], 1, batch)
    return {
        "TensorDataset and DataLoader": lambda: _official(loader, device, normalized),
        "ours, of an array": _ours(stream, device, MEAN, STD),
    }


def _official(loader: DataLoader[Any], device: torch.device, normalized: nn.Module | None = None) -> None:
    for images, _ in loader:
        there = images.to(device, non_blocking=True)
        if normalized is not None:
            normalized(there)


def _ours(stream: Stream, device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[], None]:
    normalized = Backbone(nn.Identity(), stream.num_classes, mean, std, "").to(device)
    plan = stream.plan(Scenario(), 0)

    def read() -> None:
        for batch in stream.batches(plan, device):
            normalized(to_unit_float(batch.images, device))

    return read
