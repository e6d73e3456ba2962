"""Train a source model: any timm model on any clean data set, to a checkpoint that `model.checkpoint` takes.

    python scripts/train_source.py DATA --model resnet18 --stem cifar --epochs 20 --out resnet18.safetensors

DATA is an .npz with `images` uint8 (N, H, W, 3) and `labels` (N,), a folder with a sub-folder of images for each class
(give --size), or the word `demo`: the 2,000 digits that trained the demo's backbone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional as F

from tta.models import timm_backbone
from tta.streams.datasets import demo
from tta.streams.datasets.labelled_dataset import read_labelled
from tta.utils.devices import choose_device
from tta.utils.paths import atomic_file

Report = Callable[[int, float], None]
"""Called after each epoch with its number, from 1, and the mean loss in nats."""


def main() -> None:
    """Train, measure on images that were held out, save."""
    options = _parse()
    torch.manual_seed(options.seed)
    images, labels, test_images, test_labels = _data(options)
    mean, std = _statistics(images)
    mean, std = options.mean or mean, options.std or std
    kwargs = json.loads(options.kwargs)
    model = timm_backbone(
        options.model,
        pretrained=options.pretrained,
        num_classes=int(labels.max()) + 1,
        stem=options.stem,
        kwargs=kwargs,
        mean=mean,
        std=std,
    ).to(choose_device(options.device))
    began = time.perf_counter()
    train_source(
        model,
        images,
        labels,
        options.epochs,
        options.lr,
        options.batch_size,
        shift=options.shift,
        flip=options.flip,
        seed=options.seed,
        report=lambda epoch, loss: print(f"epoch {epoch}/{options.epochs}: loss {loss:.4f} nats", flush=True),
    )
    print(f"trained on {len(images)} images in {time.perf_counter() - began:.0f} s")
    if options.half:
        model.net.half().float()
    measured = f"{100 * accuracy(model, test_images, test_labels):.2f} %"
    print(f"accuracy on {len(test_images)} held-out images: {measured}")
    _save(model.net, options, measured)
    words = ["model=timm", f"model.name={options.model}", f"model.checkpoint={options.out}"]
    words += [f"model.mean={mean}", f"model.std={std}"]
    words += [f"model.stem={options.stem}"] if options.stem else []
    words += [f"+model.kwargs.{key}={json.dumps(value)}" for key, value in kwargs.items()]
    print(f"saved {options.out}; use it with: tta {shlex.join(words)}")


def _parse() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="an .npz file, a folder of classes, or demo")
    parser.add_argument("--test", type=Path, help="clean test data; default: a tenth of DATA is held out")
    parser.add_argument("--size", type=int, help="height and width of a folder's images, in pixels")
    parser.add_argument("--model", default="resnet18", help="name of a timm model")
    parser.add_argument("--pretrained", action="store_true", help="start from timm's weights")
    parser.add_argument("--stem", choices=["cifar"], help="3x3 stride-1 first convolution, for 32-pixel images")
    parser.add_argument(
        "--kwargs", default="{}", help="JSON, for timm.create_model: '{\"channels\": [16, 32, 64, 128]}'"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--shift", type=int, default=2, help="augmentation: shift by up to so many pixels")
    parser.add_argument("--flip", action="store_true", help="augmentation: mirror half of the images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean", type=float, nargs="+", help="normalisation of each channel; default: the data's mean")
    parser.add_argument("--std", type=float, nargs="+", help="default: the data's standard deviation")
    parser.add_argument("--half", action="store_true", help="save weights as float16, half the size")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint, .safetensors")
    return parser.parse_args()


def _data(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if options.data == "demo":
        return (*demo.split(trained=True), *demo.split(trained=False))
    images, labels = load_clean(Path(options.data), options.size)
    if options.test is not None:
        return (images, labels, *load_clean(options.test, options.size))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(images) // 10], order[len(images) // 10 :]
    return images[train], labels[train], images[test], labels[test]


def _statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, over at most 5 000 images, to four digits."""
    sample = images[:: max(1, len(images) // 5000)].float() / 255
    return (
        [round(float(v), 4) for v in sample.mean((0, 2, 3))],
        [round(max(float(v), 1e-3), 4) for v in sample.std((0, 2, 3))],
    )


def _save(net: nn.Module, options: argparse.Namespace, measured: str) -> None:
    """Write the weights, and in the file's metadata how they were made."""
    made_by = {
        "options": json.dumps({name: str(value) for name, value in vars(options).items() if name != "out"}),
        "accuracy": measured,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    with atomic_file(options.out) as temporary:
        save_model(net.half() if options.half else net, str(temporary), made_by)


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


if __name__ == "__main__":
    main()
