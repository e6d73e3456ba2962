"""The data sets that can be fetched: addresses, sizes, checksums, layouts.

Sizes and md5 sums are those that the records at Zenodo state. Where none is stated, a file can be checked for its
layout alone.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from tta.data.layouts import CIFAR10_1, CORRUPTIONS_3D, FOLDERS, Arrays, Files, Images, Layout, cifar10_1_files


@dataclass(frozen=True)
class File:
    """A file to download: an archive (``.tar``, ``.tar.gz``), or taken as it is.

    Args:
        name: of the file.
        url: its address.
        size: in bytes; ``None`` if not known.
        md5: in hexadecimal; ``None`` if not known.
    """

    name: str
    url: str
    size: int | None = None
    md5: str | None = None

    @property
    def packed(self) -> bool:
        """Whether it is an archive."""
        return self.name.endswith((".tar", ".tar.gz"))

    @property
    def unpacked_per_byte(self) -> float:
        """Bytes on disk for each byte of the file, an upper bound: images hardly compress a second time."""
        return 1.1 if self.name.endswith(".gz") else 1.0


@dataclass(frozen=True)
class Part:
    """What is fetched together.

    Args:
        name: of the part.
        files: to download.
        layout: of what is in them, in the folder of the data set.
        optional: fetched only when named.
    """

    name: str
    files: tuple[File, ...]
    layout: Layout
    optional: bool = False


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Args:
        name: for the command line.
        title: as people know it, with its paper.
        folder: its official folder.
        parts: to choose from.
    """

    name: str
    title: str
    folder: str
    parts: tuple[Part, ...]

    def choose(self, names: str | None) -> tuple[Part, ...]:
        """Parts of these names, separated by commas; ``all``; or, for ``None``, those that are not optional.

        Raises:
            ValueError: for an unknown name.
        """
        if names is None:
            return tuple(part for part in self.parts if not part.optional)
        if names == "all":
            return self.parts
        known = {part.name: part for part in self.parts}
        asked = [name.strip() for name in names.split(",")]
        for name in asked:
            if name not in known:
                raise ValueError(
                    f"{self.name} has no part {name!r}{_similar(name, known)} Choose from: {', '.join(known)}; "
                    "several are separated by commas; or all"
                )
        return tuple(part for part in self.parts if part.name in asked)

    def place(self, root: Path) -> Path:
        """Folder of the data set for a root that holds it, or is it."""
        inside = root / self.folder
        if not inside.exists() and (root.name == self.folder or self.has_part(root)):
            return root
        return inside

    def has_part(self, folder: Path) -> bool:
        """Whether at least one part of the data set is complete in this folder."""
        return any(not next(part.layout.problems(folder, deep=False), None) for part in self.parts)


def find(name: str) -> DataSet:
    """Data set of this name.

    Raises:
        ValueError: if there is none.
    """
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}{_similar(name, DATASETS)} Choose from: {', '.join(DATASETS)}")
    return DATASETS[name]


def _similar(name: str, known: dict[str, Part] | dict[str, DataSet]) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _zenodo(record: int, name: str, size: int, md5: str) -> File:
    return File(name, f"https://zenodo.org/records/{record}/files/{name}?download=1", size, md5)


_CORRUPTIONS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("frost", "snow", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "spatter", "gaussian_blur", "saturate"),
}
_CIFAR_10 = 10_000 * 3_072  # bytes of the pixels in a file of CIFAR-10


def _cifar_c(classes: int, record: int, size: int, md5: str) -> DataSet:
    name = f"cifar{classes}_c"
    title = FOLDERS[name]
    images = tuple(f"{corruption}.npy" for names in _CORRUPTIONS.values() for corruption in names)
    layout = Arrays(images, "labels.npy", (50_000, 32, 32, 3), classes)
    part = Part(title, (_zenodo(record, f"{title}.tar", size, md5),), layout)
    return DataSet(name, f"{title} (arXiv:1903.12261), 19 corruptions", title, (part,))


def _imagenet_c(name: str, size: int, md5: str) -> Part:
    layout = Images(_CORRUPTIONS[name], each=50)
    return Part(name, (_zenodo(2235448, f"{name}.tar", size, md5),), layout, optional=name == "extra")


def _imagenet_3dcc(name: str) -> Part:
    file = File(f"{name}.tar.gz", f"https://datasets.epfl.ch/3dcc/imagenet_3dcc/{name}.tar.gz")
    return Part(name, (file,), Images((name,)))


def _cifar10_1(version: str) -> Part:
    names = cifar10_1_files(version)
    address = "https://raw.githubusercontent.com/modestyachts/CIFAR-10.1/HEAD/datasets"
    files = tuple(File(name, f"{address}/{name}") for name in names)
    return Part(
        version, files, Arrays(names[:1], names[1], (CIFAR10_1[version], 32, 32, 3), 10), optional=version == "v4"
    )


def _whole(folder: str, file: File, layout: Layout) -> tuple[str, tuple[Part, ...]]:
    return folder, (Part(folder, (file,), layout),)


DATASETS = {
    dataset.name: dataset
    for dataset in (
        DataSet(
            "cifar10",
            "CIFAR-10, training and test images",
            *_whole(
                FOLDERS["cifar10"],
                File(
                    "cifar-10-python.tar.gz",
                    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                    md5="c58f30108f718f92721af3b95e74349a",
                ),
                Files(
                    {**{f"data_batch_{n}": _CIFAR_10 for n in range(1, 6)}, "test_batch": _CIFAR_10, "batches.meta": 1}
                ),
            ),
        ),
        DataSet(
            "cifar10_1",
            "CIFAR-10.1, new test images: v6 (2 000, balanced), v4 (2 021)",
            FOLDERS["cifar10_1"],
            tuple(_cifar10_1(version) for version in CIFAR10_1),
        ),
        _cifar_c(10, 2535967, 2_918_471_680, "56bf5dcef84df0e2308c6dcbcbbd8499"),
        _cifar_c(100, 3555552, 2_918_473_216, "11f0ed0f1191edbf9fa23466ae6021d3"),
        DataSet(
            "imagenet_c",
            "ImageNet-C (arXiv:1903.12261), 15 corruptions, with extra 19",
            FOLDERS["imagenet_c"],
            (
                _imagenet_c("noise", 22_565_673_785, "e80562d7f6c3f8834afb1ecf27252745"),
                _imagenet_c("blur", 7_112_704_951, "2d8e81fdd8e07fef67b9334fa635e45c"),
                _imagenet_c("weather", 12_797_438_995, "33ffea4db4d93fe4a428c40a6ce0c25d"),
                _imagenet_c("digital", 7_757_510_705, "89157860d7b10d5797849337ca2e5c03"),
                _imagenet_c("extra", 15_789_490_144, "d492dfba5fc162d8ec2c3cd8ee672984"),
            ),
        ),
        DataSet(
            "imagenet_3dcc",
            "ImageNet-3DCC, 12 corruptions that use depth or video; CC BY-NC",
            FOLDERS["imagenet_3dcc"],
            tuple(_imagenet_3dcc(name) for name in CORRUPTIONS_3D),
        ),
        DataSet(
            "imagenet_r",
            "ImageNet-R, renditions: 30 000 images of 200 classes",
            *_whole(
                FOLDERS["imagenet_r"],
                File("imagenet-r.tar", "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"),
                Images(classes=200, total=30_000),
            ),
        ),
        DataSet(
            "imagenet_v2",
            "ImageNet-V2, matched frequency: 10 000 new test images",
            *_whole(
                FOLDERS["imagenet_v2"],
                File(
                    "imagenetv2-matched-frequency.tar.gz",
                    "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
                ),
                Images(name=r"\d{1,3}", each=10),
            ),
        ),
    )
}
