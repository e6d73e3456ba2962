"""CIFAR-10-C and CIFAR-100-C: which rows a severity takes, and what is wrong with files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import tiny_data
from helpers.errors import raises_naming
from helpers.faulty_server import Server
from tta.corruptions import BENCHMARK, CORRUPTIONS
from tta.data import catalogue
from tta.data.catalogue import DataSet, File, Part
from tta.data.layouts import Arrays
from tta.streams import Scenario, Stream
from tta.streams.arrays import ArrayImages
from tta.streams.datasets.cifar import cifar_c
from tta.streams.options import choose_corruptions

N = 4
FILE_ORDER = Scenario(order="file")


def write(folder: Path, classes: int = 10, names: tuple[str, ...] = ("fog", "snow")) -> Path:
    """The official layout with N images for each severity: row r is filled with 10 r, plus the channel."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = 10 * np.arange(5 * N).reshape(-1, 1, 1, 1) + np.arange(3)
    for shift, name in enumerate(names):
        np.save(folder / f"{name}.npy", np.broadcast_to(rows + 3 * shift, (5 * N, 32, 32, 3)).astype(np.uint8))
    np.save(folder / "labels.npy", np.tile(np.arange(classes - N, classes), 5).astype(np.uint8))
    return folder


def images_and_labels(stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(stream.batches(stream.plan(FILE_ORDER, 0)))
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def test_cifar_c__severity_takes_its_rows(tmp_path: Path) -> None:
    write(tmp_path)
    for severity in range(1, 6):
        stream = cifar_c(str(tmp_path), corruptions=["snow", "fog"], severity=severity, batch_size=3)
        images, labels = images_and_labels(stream)
        rows = [10 * (N * (severity - 1) + row) + shift for shift in (3, 0) for row in range(N)]
        assert images[:, :, 31, 31].tolist() == [[row, row + 1, row + 2] for row in rows]
        assert labels.tolist() == [6, 7, 8, 9] * 2
        assert [str(domain) for domain in stream.domains] == [f"snow-{severity}", f"fog-{severity}"]
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (2 * N, 3, 32, 32))
    assert isinstance(stream.domains[0].load, ArrayImages)
    assert isinstance(stream.domains[0].load.array, np.memmap)  # the official files have 1.5 GB each


def test_cifar_c__labels_are_those_of_the_same_rows(tmp_path: Path) -> None:
    """Not those of the first severity, which are the same in the official files alone."""
    write(tmp_path)
    np.save(tmp_path / "labels.npy", np.arange(5 * N) % 9)
    for severity in range(1, 6):
        _, labels = images_and_labels(cifar_c(str(tmp_path), corruptions="fog", severity=severity))
        assert labels.tolist() == [row % 9 for row in range(N * (severity - 1), N * severity)]


def test_cifar_c__severities_follow_one_another(tmp_path: Path) -> None:
    stream = cifar_c(str(write(tmp_path)), corruptions=["snow", "fog"], severity=[1, 3, 1])
    images, labels = images_and_labels(stream)
    rows = [10 * (N * (severity - 1) + k) + shift for shift in (3, 0) for severity in (1, 3, 1) for k in range(N)]
    assert images[:, 0, 0, 0].tolist() == rows
    assert labels.tolist() == [6, 7, 8, 9] * 6
    assert [str(domain) for domain in stream.domains] == ["snow-1", "snow-3", "snow-1", "fog-1", "fog-3", "fog-1"]


def test_cifar_c__real_files_are_read_as_they_are(shared: Path) -> None:
    root = shared / "data" / "cifar10-c-200"
    images, labels = images_and_labels(cifar_c(str(root), corruptions="all", severity=[1, 5]))
    rows = np.r_[0:200, 800:1000]
    expected = np.concatenate([np.load(root / f"{name}.npy", mmap_mode="r")[rows] for name in CORRUPTIONS])
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)
    assert np.array_equal(labels.numpy(), np.tile(np.load(root / "labels.npy")[rows], 19))


def test_cifar_c__finds_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the official name below the root, and below the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for classes in (10, 100):
        write(tmp_path / f"CIFAR-{classes}-C", classes)
        for root in (str(tmp_path), f"~/CIFAR-{classes}-C"):
            stream = cifar_c(root, classes, "fog")
            assert stream.num_classes == classes
            assert images_and_labels(stream)[1].tolist() == list(range(classes - N, classes))


def test_corruptions__groups_and_names() -> None:
    assert choose_corruptions("benchmark") == list(BENCHMARK)
    assert len(BENCHMARK) == 15
    assert choose_corruptions("extra") == ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
    assert choose_corruptions("all") == choose_corruptions("benchmark") + choose_corruptions("extra")
    assert choose_corruptions("fog") == choose_corruptions(["fog"]) == ["fog"]


@pytest.mark.parametrize(
    ("corruptions", "named"),
    [
        ("gausian_noise", ("'gausian_noise'", "gaussian_noise", "shot_noise")),
        (["fog", "xyzzy"], ("'xyzzy'", "saturate", "benchmark", "extra", "all")),
        (["fog", "snow", "fog"], ("fog, snow, fog",)),
        ([3], ("3", "fog")),
        (None, ("stream.corruptions", "None")),
        ([], ("stream.corruptions",)),
    ],
)
def test_cifar_c__rejects_wrong_corruptions(tmp_path: Path, corruptions: Any, named: tuple[str, ...]) -> None:
    with raises_naming(ValueError, *named):
        cifar_c(str(write(tmp_path)), corruptions=corruptions)


def test_cifar_c__rejects_wrong_numbers(tmp_path: Path) -> None:
    write(tmp_path)
    for severity in (0, 6, "5", True, 2.0, None):
        with raises_naming(ValueError, "stream.severity", 1, 5, repr(severity)):
            cifar_c(str(tmp_path), severity=severity)  # type: ignore[arg-type]
    with raises_naming(ValueError, "stream.num_classes", 10, 100, 50):
        cifar_c(str(tmp_path), num_classes=50)


def test_cifar_c__missing_files_are_named(tmp_path: Path) -> None:
    with raises_naming(FileNotFoundError, "stream.root", "CIFAR-10-C", tmp_path / "nowhere", "stream.download"):
        cifar_c(str(tmp_path / "nowhere"))
    with raises_naming(FileNotFoundError, "stream.root", "CIFAR-100-C", tmp_path):
        cifar_c(str(tmp_path), num_classes=100)
    np.save(write(tmp_path) / "clean.npy", np.zeros(3))
    with raises_naming(FileNotFoundError, "frost.npy", "fog, snow") as caught:
        cifar_c(str(tmp_path), corruptions="frost")
    assert "clean" not in str(caught.value).replace(str(tmp_path), "")
    (tmp_path / "labels.npy").unlink()
    with raises_naming(FileNotFoundError, "labels.npy"):
        cifar_c(str(tmp_path))


def truncate(folder: Path) -> None:
    data = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(data[:-1])


def web_page(folder: Path) -> None:
    (folder / "fog.npy").write_text("<html>")


def save(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"{name}.npy", array)


DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (truncate, ("fog.npy",)),
    "web page": (web_page, ("fog.npy",)),
    "objects": (save("labels", np.array([{}], dtype=object)), ("labels.npy",)),
    "dtype": (
        save("fog", np.zeros((20, 32, 32, 3), np.float32)),
        ("fog.npy", "uint8", "(N, 32, 32, 3)", "float32", "(20, 32, 32, 3)"),
    ),
    "channels first": (save("fog", np.zeros((20, 3, 32, 32), np.uint8)), ("fog.npy", "(20, 3, 32, 32)")),
    "one severity": (save("fog", np.zeros((4, 32, 32, 3), np.uint8)), ("fog.npy", "4", "labels.npy", "20")),
    "labels not times 5": (save("labels", np.zeros(21, int)), ("labels.npy", "int64", "(21,)")),
    "no labels": (save("labels", np.zeros(0, int)), ("labels.npy", "(0,)")),
    "float labels": (save("labels", np.zeros(20)), ("labels.npy", "float64")),
    "one-hot labels": (save("labels", np.zeros((20, 10), int)), ("labels.npy", "(20, 10)")),
    "labels too high": (save("labels", np.arange(20)), ("labels.npy", "0 to 9", "19")),
    "negative labels": (save("labels", np.arange(20) % 10 - 1), ("labels.npy", "0 to 9", "-1")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_cifar_c__damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    spoil, named = DAMAGES[damage]
    spoil(write(tmp_path))
    with raises_naming(ValueError, *named):
        cifar_c(str(tmp_path), corruptions="fog")


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_c__downloads_what_is_not_there(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    """From the address in the catalogue to a stream; the archive is as small as the files of the other tests."""
    folder = f"CIFAR-{classes}-C"
    made = write(tmp_path / "made" / folder, classes)
    content = tiny_data.archive({file.name: file.read_bytes() for file in made.iterdir()}, f"{folder}/")
    layout = Arrays(("fog.npy", "snow.npy"), "labels.npy", (5 * N, 32, 32, 3), classes)
    file = File(f"{folder}.tar", server.url("archive"), len(content), tiny_data.md5(content))
    name = f"cifar{classes}_c"
    monkeypatch.setitem(catalogue.DATASETS, name, DataSet(name, folder, folder, (Part(folder, (file,), layout),)))
    server.files["archive"] = content
    for root in (tmp_path, tmp_path, tmp_path / folder):  # the second and third time it is there
        stream = cifar_c(str(root), classes, "fog", download=True)
        assert stream.num_classes == classes
        assert images_and_labels(stream)[1].tolist() == list(range(classes - N, classes))
    assert len(server.requests) == 1


def test_cifar_c__downloads_only_when_asked(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.DATASETS, "cifar10_c", tiny_data.dataset(server.url("nowhere")))
    with raises_naming(FileNotFoundError, "stream.download=true"):
        cifar_c(str(tmp_path))
    assert server.requests == []
    with raises_naming(OSError, "cifar10_c", "TINY-C.tar", 404, f"tta-data get cifar10_c --root {tmp_path}"):
        cifar_c(str(tmp_path), download=True)
