"""CIFAR-10.1 in its official layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import tiny_data
from helpers.errors import raises_naming
from helpers.faulty_server import Server
from tta.data import catalogue
from tta.data.catalogue import DataSet, File, Part
from tta.data.layouts import CIFAR10_1, Arrays
from tta.streams import Scenario
from tta.streams.datasets.cifar import cifar10_1

LABELS = np.array([3, 0, 9, 9, 1], dtype=np.int32)  # the official labels are int32


def arrays(version: str = "v6") -> dict[str, np.ndarray]:
    """The official files, with 5 images: image i is filled with 10 i, plus the channel; v4 is one brighter."""
    pixels = 10 * np.arange(len(LABELS)).reshape(-1, 1, 1, 1) + np.arange(3) + (version == "v4")
    data = np.broadcast_to(pixels, (len(LABELS), 32, 32, 3)).astype(np.uint8)
    return {f"cifar10.1_{version}_data.npy": data, f"cifar10.1_{version}_labels.npy": LABELS}


def write(folder: Path, version: str = "v6", changes: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays(version).items():
        np.save(folder / name, (changes or {}).get(name.split("_")[-1].partition(".")[0], array))
    return folder


@pytest.mark.parametrize("below", ["", "CIFAR-10.1"])
def test_cifar10_1__has_its_images_and_labels(tmp_path: Path, below: str) -> None:
    for version in CIFAR10_1:
        write(tmp_path / below, version)
        stream = cifar10_1(str(tmp_path), version)
        (batch,) = stream.batches(stream.plan(Scenario(order="file"), 0))
        assert batch.labels.tolist() == LABELS.tolist()
        assert batch.images[:, :, 31, 31].tolist() == [
            [10 * i + channel + (version == "v4") for channel in range(3)] for i in range(5)
        ]
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (5, 3, 32, 32))
        assert (stream.num_classes, stream.classes) == (10, None)
        assert [(domain.name, domain.severity) for domain in stream.domains] == [(f"cifar10_1_{version}", 0)]


def test_cifar10_1__missing_files_are_named(tmp_path: Path) -> None:
    data, labels = "cifar10.1_v4_data.npy", "cifar10.1_v4_labels.npy"
    for root in (tmp_path / "nowhere", tmp_path, write(tmp_path / "other")):
        with raises_naming(FileNotFoundError, "stream.root", data, labels, root, "stream.download=true"):
            cifar10_1(str(root), "v4")
    (write(tmp_path, "v4") / data).unlink()
    with raises_naming(FileNotFoundError, data):
        cifar10_1(str(tmp_path), "v4")
    with raises_naming(ValueError, "stream.version", "v6", "v4", "'v5'"):
        cifar10_1(str(tmp_path), "v5")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"labels": LABELS + 1}, ("v6_labels.npy", "0 to 9", "10")),
        ({"labels": LABELS - 1}, ("v6_labels.npy", "0 to 9", "-1")),
        ({"labels": LABELS[:, None]}, ("v6_labels.npy", "(N,)", "(5, 1)")),
        ({"labels": LABELS[:4]}, ("v6_data.npy", 5, "v6_labels.npy", 4)),
        ({"data": np.zeros((5, 32, 32, 3))}, ("v6_data.npy", "uint8", "float64")),
    ],
)
def test_cifar10_1__rejects_wrong_arrays(
    tmp_path: Path, changes: dict[str, np.ndarray], named: tuple[object, ...]
) -> None:
    with raises_naming(ValueError, *named):
        cifar10_1(str(write(tmp_path, changes=changes)))


def test_cifar10_1__truncated_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path) / "cifar10.1_v6_data.npy"
    file.write_bytes(file.read_bytes()[:500])
    with raises_naming(ValueError, file):
        cifar10_1(str(tmp_path))


@pytest.mark.parametrize("version", CIFAR10_1)
def test_cifar10_1__downloads_one_version(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    parts = []
    for each in CIFAR10_1:
        made = arrays(each)
        data, labels = made
        server.files.update({name: tiny_data.npy(array) for name, array in made.items()})
        files = tuple(File(name, server.url(name)) for name in made)
        parts.append(Part(each, files, Arrays((data,), labels, (5, 32, 32, 3), 10), optional=each == "v4"))
    known = DataSet("cifar10_1", "CIFAR-10.1", "CIFAR-10.1", tuple(parts))
    monkeypatch.setitem(catalogue.DATASETS, "cifar10_1", known)
    for _ in range(2):
        stream = cifar10_1(str(tmp_path), version, download=True)
        assert stream.domains[0].labels.tolist() == LABELS.tolist()
        assert sorted(path.name for path in (tmp_path / "CIFAR-10.1").iterdir()) == sorted(arrays(version))
    assert len(server.requests) == 2
    server.files.clear()
    command = f"tta-data get cifar10_1 --root {tmp_path / 'other'}{' --parts v4' if version == 'v4' else ''}"
    with raises_naming(OSError, "cifar10_1", command):
        cifar10_1(str(tmp_path / "other"), version, download=True)
