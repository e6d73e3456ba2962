"""Corrupt a clean data set of 32-pixel images into the official layout of CIFAR-10-C.

    python scripts/make_corrupted.py cifar10_test.npz --out CIFAR-10-C --limit 2000 --corruptions fog snow

DATA is an .npz with `images` uint8 (N, 32, 32, 3) and `labels` (N,). OUT gets `labels.npy` and a `<corruption>.npy`
each, uint8 (5N, 32, 32, 3), severity s in rows [N(s-1), Ns), as `tta stream=cifar10_c stream.root=OUT` reads them.
Corruptions that are there already are left as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from tta.corruptions import BENCHMARK, CORRUPTIONS, corrupt
from tta.paths import atomic_file
from tta.training import load_clean

SEVERITIES = range(1, 6)


def main() -> None:
    """Write the labels and every corruption that is missing."""
    options = _parse()
    images, labels = load_clean(options.data)
    images, labels = images[: options.limit], labels[: options.limit]
    _save(options.out / "labels.npy", labels.repeat(len(SEVERITIES)).to(torch.uint8).numpy())
    index = torch.arange(len(images))
    for name in options.corruptions:
        file = options.out / f"{name}.npy"
        if file.is_file():
            print(f"{file} is there already")
            continue
        parts = [corrupt(images, name, severity, index=index, seed=options.seed) for severity in SEVERITIES]
        _save(file, torch.cat(parts).permute(0, 2, 3, 1).contiguous().numpy())
        print(f"written: {file}", flush=True)


def _save(file: Path, array: np.ndarray) -> None:
    with atomic_file(file) as temporary:
        np.save(temporary, array)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="an .npz file of clean images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npy files")
    parser.add_argument("--limit", type=int, help="the first so many images; default: all")
    parser.add_argument("--corruptions", nargs="+", choices=CORRUPTIONS, default=BENCHMARK, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
