"""Training of a source model on clean images: enough for a small backbone of one's own, no recipe for records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tta.streams.labelled import read_labelled

Report = Callable[[int, float], None]
"""Called after each epoch with its number, from 1, and the mean loss in nats."""


def train_source(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    lr: float = 0.1,
    batch_size: int = 100,
    weight_decay: float = 5e-4,
    shift: int = 2,
    flip: bool = False,
    seed: int = 0,
    report: Report | None = None,
) -> None:
    """Train in place with SGD (Nesterov), one cycle of learning rate and momentum, and shifted copies of images.

    Args:
        net: takes images (N, 3, H, W) in [0, 1]; it is on its device already, and is left in eval mode.
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        epochs: passes over the images.
        lr: highest learning rate.
        batch_size: the last, smaller batch of an epoch is left out.
        weight_decay: of every parameter.
        shift: images move by up to so many pixels in both directions, black comes in.
        flip: mirror half of the images.
        seed: of the order and the augmentation.
        report: see ``Report``.

    Raises:
        ValueError: if there are fewer images than ``batch_size``, or no epochs.
    """
    if epochs < 1:
        raise ValueError(f"training needs at least 1 epoch, got {epochs}")
    steps = len(images) // batch_size
    if not steps:
        raise ValueError(f"training needs at least one batch of {batch_size} images, got {len(images)}")
    device = next(net.parameters()).device
    images, labels = images.to(device), labels.to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    net.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)[: steps * batch_size]
        total = torch.zeros((), device=device)
        for index in order.split(batch_size):
            batch = _augment(images[index.to(device)].float() / 255, shift, flip, generator)
            loss = F.cross_entropy(net(batch), labels[index.to(device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        if report is not None:
            report(epoch + 1, float(total) / steps)
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Share of images (uint8 (N, 3, H, W)) that ``net``, in eval mode, classifies as labelled, in [0, 1]."""
    device = next(net.parameters()).device
    hits = sum(
        (net(part.to(device).float() / 255).argmax(-1).cpu() == truth).sum().item()
        for part, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    )
    return hits / len(labels)


def load_clean(path: Path, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Read a clean data set, from an ``.npz`` file or a folder of classes.

    Args:
        path: a file with the arrays ``images``, uint8 (N, H, W, 3), and ``labels`` (N,), or a folder with a sub-folder
            of images for each class, in alphabetical order.
        size: height and width to which a folder's images are resized and cropped; needed for a folder.

    Returns:
        Images, uint8 (N, 3, H, W), and labels, int64 (N,).

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the file is no ``.npz`` or has other arrays, or a folder comes without a size.
    """
    if path.is_dir():
        return _load_folder(path, size)
    if not path.is_file():
        raise FileNotFoundError(f"there is no data set {path}: expected an .npz file or a folder of classes")
    images, labels = read_labelled(path)
    return torch.from_numpy(images).permute(0, 3, 1, 2), labels


def _load_folder(path: Path, size: int | None) -> tuple[Tensor, Tensor]:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    if size is None:
        raise ValueError(f"{path} is a folder of images: give the size they are to have")
    crop = [transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]
    data = ImageFolder(str(path), transforms.Compose(crop))
    return torch.stack([image for image, _ in data]), torch.tensor(data.targets)


def _augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    n, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4)
    moved = torch.randint(2 * shift + 1, (2, n), generator=generator).to(images.device)
    rows = moved[0].view(n, 1) + torch.arange(height, device=images.device)
    columns = moved[1].view(n, 1) + torch.arange(width, device=images.device)
    if flip:
        mirrored = (torch.rand(n, 1, generator=generator) < 0.5).to(images.device)
        columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(n, device=images.device).view(n, 1, 1)
    return padded[which, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
