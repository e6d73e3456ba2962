"""Train a source model: any timm model on any clean data set, to a checkpoint that `model.checkpoint` takes.

    python scripts/train_source.py DATA --model resnet18 --stem cifar --epochs 20 --out resnet18.safetensors

DATA is an .npz with `images` uint8 (N, H, W, 3) and `labels` (N,), a folder with a sub-folder of images for each class
(give --size), or the word `demo`: the 2 000 digits that the demo's backbone is trained on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path

import torch
from torch import Tensor

from tta import demo
from tta.backbones import timm_backbone
from tta.devices import choose_device
from tta.paths import atomic_file
from tta.training import accuracy, load_clean, train_source


def main() -> None:
    """Train, measure on images that were held out, save."""
    options = _parse()
    torch.manual_seed(options.seed)
    images, labels, test_images, test_labels = _data(options)
    mean, std = _statistics(images)
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
    print(f"accuracy on {len(test_images)} held-out images: {100 * accuracy(model, test_images, test_labels):.2f} %")
    with atomic_file(options.out) as temporary:
        _save(model.net, temporary)
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


def _save(net: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import save_model

    save_model(net, str(path))


if __name__ == "__main__":
    main()
