"""The records: complete, consistent, and the same as others know them."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.errors import raises_naming
from tta.corruptions import BENCHMARK, CORRUPTIONS
from tta.data.catalogue import DATASETS, DataSet, find
from tta.data.layouts import Arrays, Images
from tta.models import import_robustbench


def test_files__have_https_addresses_and_md5_sums() -> None:
    files = [file for dataset in DATASETS.values() for part in dataset.parts for file in part.files]
    assert len(files) > 25
    for file in files:
        assert file.url.startswith("https://"), file
        assert file.url.partition("?")[0].endswith(f"/{file.name}"), file
        assert file.md5 is None or (len(file.md5) == 32 and int(file.md5, 16)), file
        assert file.size is None or file.md5, file  # a record has both


def test_names__are_unique() -> None:
    assert len({dataset.folder for dataset in DATASETS.values()}) == len(DATASETS)
    for dataset in DATASETS.values():
        names = [part.name for part in dataset.parts]
        assert len(set(names)) == len(names)
        assert "all" not in names
        assert DATASETS[dataset.name] is dataset


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_c__is_what_robustbench_downloads(classes: int) -> None:
    data = import_robustbench("data")
    record, files = data.ZENODO_CORRUPTIONS_LINKS[data.BenchmarkDataset(f"cifar{classes}")]
    (part,) = find(f"cifar{classes}_c").parts
    (file,) = part.files
    assert {file.name} == files
    assert file.url == f"https://zenodo.org/records/{record}/files/{file.name}?download=1"
    assert isinstance(part.layout, Arrays)
    assert (part.layout.shape, part.layout.classes) == ((50_000, 32, 32, 3), classes)
    assert sorted(part.layout.images) == sorted(f"{name}.npy" for name in CORRUPTIONS)
    # An uncompressed archive is its files, in blocks of 512 bytes with a header each, and little more.
    pixels = sum(128 + 50_000 * 3072 for _ in part.layout.images)
    assert file.size is not None
    assert 0 < file.size - pixels - 50_128 < 40_000


def test_imagenet_c__has_the_19_corruptions() -> None:
    dataset = find("imagenet_c")
    assert folders(dataset, "all") == sorted(CORRUPTIONS)
    assert folders(dataset, None) == sorted(BENCHMARK)


def test_imagenet_3dcc__is_what_robustbench_knows() -> None:
    assert folders(find("imagenet_3dcc"), "all") == sorted(import_robustbench("data").CORRUPTIONS_3DCC)


def test_imagenet_v2__has_folders_of_whole_numbers() -> None:
    (part,) = find("imagenet_v2").parts
    assert isinstance(part.layout, Images)
    assert (part.layout.name, part.layout.classes, part.layout.each) == (r"\d{1,3}", 1000, 10)


def folders(dataset: DataSet, parts: str | None) -> list[str]:
    names: list[str] = []
    for part in dataset.choose(parts):
        assert isinstance(part.layout, Images)
        names += part.layout.folders
    return sorted(names)


def test_parts__are_chosen_by_name() -> None:
    dataset = find("imagenet_c")
    assert [part.name for part in dataset.choose("blur, noise")] == ["noise", "blur"]
    assert [part.name for part in dataset.choose(None)] == ["noise", "blur", "weather", "digital"]
    assert dataset.choose("all") == dataset.parts
    for wrong in ("blurr", "", "noise,"):
        unknown = repr(wrong.rpartition(",")[2])
        with raises_naming(ValueError, "imagenet_c", unknown, "noise", "blur", "weather", "digital", "extra"):
            dataset.choose(wrong)


def test_find__unknown_name_lists_the_known_ones() -> None:
    for wrong in ("cifar10-c", "CIFAR10_C", "xyzzy"):
        with raises_naming(ValueError, wrong, *DATASETS):
            find(wrong)


def test_place__is_inside_the_root_or_the_root_itself(tmp_path: Path) -> None:
    dataset = find("cifar10_c")
    assert dataset.place(tmp_path) == tmp_path / "CIFAR-10-C"
    assert dataset.place(tmp_path / "CIFAR-10-C") == tmp_path / "CIFAR-10-C"
    (tmp_path / "CIFAR-10-C" / "CIFAR-10-C").mkdir(parents=True)
    assert dataset.place(tmp_path / "CIFAR-10-C") == tmp_path / "CIFAR-10-C" / "CIFAR-10-C"
