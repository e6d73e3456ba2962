"""The records: complete, consistent, and the same as others know them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tta.backbones import import_robustbench
from tta.corruptions import BENCHMARK, CORRUPTIONS
from tta.data.catalogue import DATASETS, File, Part, find
from tta.data.layouts import Arrays, Images

FILES = [file for dataset in DATASETS.values() for part in dataset.parts for file in part.files]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files(file: File) -> None:
    assert file.url.startswith("https://")
    assert file.url.partition("?")[0].endswith(f"/{file.name}")
    assert file.md5 is None or (len(file.md5) == 32 and int(file.md5, 16))
    assert (file.size is None) or file.md5  # a record has both


def test_names_are_unique() -> None:
    assert len({(dataset.folder) for dataset in DATASETS.values()}) == len(DATASETS)
    for dataset in DATASETS.values():
        names = [part.name for part in dataset.parts]
        assert len(set(names)) == len(names)
        assert "all" not in names
        assert DATASETS[dataset.name] is dataset


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_c_is_what_robustbench_downloads(classes: int) -> None:
    data = import_robustbench("data")
    record, files = data.ZENODO_CORRUPTIONS_LINKS[data.BenchmarkDataset(f"cifar{classes}")]
    (part,) = find(f"cifar{classes}_c").parts
    (file,) = part.files
    assert {file.name} == files
    assert file.url == f"https://zenodo.org/records/{record}/files/{file.name}?download=1"
    assert isinstance(part.layout, Arrays)
    assert sorted(part.layout.images) == sorted(f"{name}.npy" for name in CORRUPTIONS)
    # An uncompressed archive is its files, in blocks of 512 bytes with a header each, and little more.
    pixels = sum(128 + 50_000 * 3072 for _ in part.layout.images)
    assert file.size is not None
    assert 0 < file.size - pixels - 50_128 < 40_000


def test_imagenet_c_is_the_19_corruptions() -> None:
    parts = find("imagenet_c").parts
    assert sorted(name for part in parts for name in folders(part)) == sorted(CORRUPTIONS)
    needed = find("imagenet_c").choose(None)
    assert sorted(name for part in needed for name in folders(part)) == sorted(BENCHMARK)


def test_imagenet_3dcc_is_what_robustbench_knows() -> None:
    parts = find("imagenet_3dcc").parts
    assert sorted(name for part in parts for name in folders(part)) == sorted(
        import_robustbench("data").CORRUPTIONS_3DCC
    )


def folders(part: Part) -> tuple[str, ...]:
    assert isinstance(part.layout, Images)
    return part.layout.folders


def test_parts() -> None:
    dataset = find("imagenet_c")
    assert [part.name for part in dataset.choose("blur, noise")] == ["noise", "blur"]
    assert [part.name for part in dataset.choose(None)] == ["noise", "blur", "weather", "digital"]
    assert dataset.choose("all") == dataset.parts
    for wrong, hint in (("blurr", "did you mean blur"), ("", r"\. Choose"), ("noise,", r"\. Choose")):
        with pytest.raises(ValueError, match=rf"imagenet_c has no part .*{hint}.*noise, blur, weather, digital, extra"):
            dataset.choose(wrong)


def test_an_unknown_name_lists_the_right_ones() -> None:
    for wrong in ("cifar10-c", "CIFAR10_C"):
        with pytest.raises(
            ValueError, match=rf"no data set '{wrong}'; did you mean cifar10_c\? .*{', '.join(DATASETS)}$"
        ):
            find(wrong)
    with pytest.raises(ValueError, match=r"no data set 'xyzzy'\. Choose from: cifar10, "):
        find("xyzzy")


def test_place(tmp_path: Path) -> None:
    dataset = find("cifar10_c")
    assert dataset.place(tmp_path) == tmp_path / "CIFAR-10-C"
    assert dataset.place(tmp_path / "CIFAR-10-C") == tmp_path / "CIFAR-10-C"
    (tmp_path / "CIFAR-10-C" / "CIFAR-10-C").mkdir(parents=True)
    assert dataset.place(tmp_path / "CIFAR-10-C") == tmp_path / "CIFAR-10-C" / "CIFAR-10-C"
