from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import tiny_data
from helpers.faulty_server import Server
from tta.corruptions import BENCHMARK, CORRUPTIONS
from tta.data import catalogue
from tta.data.catalogue import DataSet, File, Part
from tta.data.layouts import Arrays
from tta.streams import Scenario, Stream
from tta.streams.choices import choose_corruptions
from tta.streams.cifar import ArrayImages, cifar_c

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


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_severity_takes_its_rows(tmp_path: Path, severity: int) -> None:
    stream = cifar_c(str(write(tmp_path)), corruptions=["snow", "fog"], severity=severity, batch_size=3)
    images, labels = images_and_labels(stream)
    first = N * (severity - 1)
    for number, shift in enumerate((3, 0)):
        for row in range(N):
            pixel = images[number * N + row, :, 31, 31].tolist()
            assert pixel == [10 * (first + row) + shift + channel for channel in range(3)]
    assert labels.tolist() == [6, 7, 8, 9] * 2
    assert [(domain.name, domain.severity) for domain in stream.domains] == [("snow", severity), ("fog", severity)]


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_labels_are_those_of_the_severitys_own_rows(tmp_path: Path, severity: int) -> None:
    """Not those of the first severity, which are the same in the official files alone."""
    write(tmp_path)
    np.save(tmp_path / "labels.npy", np.arange(5 * N) % 9)
    _, labels = images_and_labels(cifar_c(str(tmp_path), corruptions="fog", severity=severity))
    assert labels.tolist() == [row % 9 for row in range(N * (severity - 1), N * severity)]


def test_severities_one_after_another_take_their_rows(tmp_path: Path) -> None:
    stream = cifar_c(str(write(tmp_path)), corruptions=["snow", "fog"], severity=[1, 3, 1])
    images, labels = images_and_labels(stream)
    rows = [10 * (N * (severity - 1) + k) + shift for shift in (3, 0) for severity in (1, 3, 1) for k in range(N)]
    assert images[:, 0, 0, 0].tolist() == rows
    assert labels.tolist() == [6, 7, 8, 9] * 6
    assert [str(domain) for domain in stream.domains] == ["snow-1", "snow-3", "snow-1", "fog-1", "fog-3", "fog-1"]


def test_files_are_memory_mapped(tmp_path: Path) -> None:
    (domain,) = cifar_c(str(write(tmp_path)), corruptions="fog").domains
    assert isinstance(domain.load, ArrayImages)
    assert isinstance(domain.load.array, np.memmap)


def test_images_are_uint8_channels_last(tmp_path: Path) -> None:
    images, _ = images_and_labels(cifar_c(str(write(tmp_path)), corruptions="fog"))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (N, 3, 32, 32))
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("classes", "name"), [(10, "CIFAR-10-C"), (100, "CIFAR-100-C")])
def test_parent_folder_is_accepted(tmp_path: Path, classes: int, name: str) -> None:
    write(tmp_path / name, classes)
    stream = cifar_c(str(tmp_path), classes, "fog")
    assert stream.num_classes == classes
    assert images_and_labels(stream)[1].tolist() == list(range(classes - N, classes))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data")
    assert len(cifar_c("~/data", corruptions="fog").domains) == 1


@pytest.mark.parametrize("severity", [1, 5])
def test_real_files_are_read_as_they_are(shared: Path, severity: int) -> None:
    root = shared / "data" / "cifar10-c-200"
    images, labels = images_and_labels(cifar_c(str(root), corruptions="all", severity=severity))
    rows = slice(200 * (severity - 1), 200 * severity)
    expected = np.concatenate([np.load(root / f"{name}.npy")[rows] for name in CORRUPTIONS])
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)
    assert np.array_equal(labels.numpy(), np.tile(np.load(root / "labels.npy")[rows], 19))


def test_groups_of_corruptions() -> None:
    assert choose_corruptions("benchmark") == list(BENCHMARK)
    assert len(BENCHMARK) == 15
    assert choose_corruptions("extra") == ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
    assert choose_corruptions("all") == choose_corruptions("benchmark") + choose_corruptions("extra")
    assert choose_corruptions("fog") == choose_corruptions(["fog"]) == ["fog"]


@pytest.mark.parametrize(
    ("corruptions", "message"),
    [
        (
            "gausian_noise",
            "no corruption 'gausian_noise'; did you mean gaussian_noise. Choose from: gaussian_noise, sh",
        ),
        (["fog", "xyzzy"], "no corruption 'xyzzy'. Choose from: .*saturate, or, .*groups benchmark, extra, all"),
        (["fog", "snow", "fog"], "names a corruption twice: fog, snow, fog"),
        ([3], "no corruption 3. Choose from"),
        (None, "stream.corruptions must be a name or a list of names, got None"),
        ([], "stream.corruptions is empty"),
    ],
)
def test_wrong_corruptions(tmp_path: Path, corruptions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cifar_c(str(write(tmp_path)), corruptions=corruptions)


@pytest.mark.parametrize("severity", [0, 6, "5", True, 2.0, None], ids=repr)
def test_wrong_severity(tmp_path: Path, severity: Any) -> None:
    with pytest.raises(ValueError, match=f"stream.severity must be a whole number from 1 to 5, got {severity!r}"):
        cifar_c(str(write(tmp_path)), severity=severity)


def test_wrong_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stream.num_classes must be one of 10, 100; got 50"):
        cifar_c(str(write(tmp_path)), num_classes=50)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"stream.root: expected CIFAR-10-C .*nowhere does not exist.*download"):
        cifar_c(str(tmp_path / "nowhere"))


def test_empty_root(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"expected CIFAR-100-C .* is empty\. Give the folder with stream.root="
    ):
        cifar_c(str(tmp_path), num_classes=100)


def test_root_without_labels(tmp_path: Path) -> None:
    (write(tmp_path) / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no labels.npy"):
        cifar_c(str(tmp_path))


def test_missing_file_names_those_there(tmp_path: Path) -> None:
    np.save(write(tmp_path) / "clean.npy", np.zeros(3))
    with pytest.raises(FileNotFoundError, match=r"frost.npy is missing; the corruptions there are: fog, snow$"):
        cifar_c(str(tmp_path), corruptions="frost")


def truncate(folder: Path) -> None:
    data = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(data[:-1])


def save(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"{name}.npy", array)


@pytest.mark.parametrize(
    ("damage", "message"),
    {
        "truncated": (truncate, "fog.npy cannot be read, it is truncated or no .npy file .*: fetch it again"),
        "empty": (lambda folder: (folder / "fog.npy").write_bytes(b""), "fog.npy cannot be read"),
        "web page": (lambda folder: (folder / "fog.npy").write_text("<html>"), "fog.npy cannot be read"),
        "objects": (save("labels", np.array([{}], dtype=object)), "labels.npy cannot be read"),
        "dtype": (
            save("fog", np.zeros((20, 32, 32, 3), np.float32)),
            r"fog.npy: expected uint8 \(N, 32, 32, 3\), got float32 \(20, 32, 32, 3\)",
        ),
        "channels first": (save("fog", np.zeros((20, 3, 32, 32), np.uint8)), r"got uint8 \(20, 3, 32, 32\)"),
        "one severity": (
            save("fog", np.zeros((4, 32, 32, 3), np.uint8)),
            "fog.npy has 4 images, but labels.npy has 20 labels: both must be of the same data set",
        ),
        "labels of another length": (save("labels", np.zeros(15, int)), "has 20 images, but labels.npy has 15 labels"),
        "labels not times 5": (
            save("labels", np.zeros(21, int)),
            r"whole numbers of shape \(5n,\).* got int64 \(21,\)",
        ),
        "no labels": (save("labels", np.zeros(0, int)), r"got int64 \(0,\)"),
        "float labels": (save("labels", np.zeros(20)), r"got float64 \(20,\)"),
        "one-hot labels": (save("labels", np.zeros((20, 10), int)), r"got int64 \(20, 10\)"),
        "labels too high": (
            save("labels", np.arange(20)),
            "expected labels from 0 to 9, got 0 to 19: is this a data set",
        ),
        "negative labels": (save("labels", np.arange(20) % 10 - 1), "expected labels from 0 to 9, got -1 to 8"),
    }.values(),
)
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(write(tmp_path))
    with pytest.raises(ValueError, match=message):
        cifar_c(str(tmp_path), corruptions="fog")


@pytest.mark.parametrize("classes", [10, 100])
def test_download_where_there_is_none(
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


def test_a_download_that_is_not_asked_for_does_not_happen(tmp_path: Path, server: Server) -> None:
    with pytest.raises(FileNotFoundError, match=r"stream.download=true"):
        cifar_c(str(tmp_path))
    assert server.requests == []


def test_failed_download(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_data.dataset(server.url("nowhere"))
    monkeypatch.setitem(catalogue.DATASETS, "cifar10_c", tiny)
    message = r"cifar10_c could not be fetched: TINY-C.tar .* 404 .*`tta-data get cifar10_c --root .*stream.root"
    with pytest.raises(OSError, match=message):
        cifar_c(str(tmp_path), download=True)
