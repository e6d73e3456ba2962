"""Layouts of what is there, and the command line."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers import tiny_data
from helpers.faulty_server import Server
from helpers.tiny_data import MD5, TAR, Said
from tta.data import catalogue
from tta.data.catalogue import DATASETS, find
from tta.data.cli import main
from tta.data.layouts import Arrays, Files, Images, Layout
from tta.data.obtain import get
from tta.data.verify import verify

ARRAYS = tiny_data.LAYOUT
TREE = Images(("fog", "snow"), classes=3, each=2)
FLAT = Images(classes=3, name=r"\d{1,3}", total=6)
FILES = Files({"test_batch": 100, "batches.meta": 1})


def arrays(folder: Path) -> None:
    for name, content in tiny_data.contents().items():
        (folder / name).write_bytes(content)


def tree(folder: Path, parents: Iterator[str] | None = None, classes: str = "n0000000{}") -> None:
    for parent in parents or iter([f"{name}/{severity}" for name in TREE.folders for severity in "12345"]):
        for number in range(3):
            (folder / parent / classes.format(number)).mkdir(parents=True)
            for image in ("a.JPEG", "b.png"):
                (folder / parent / classes.format(number) / image).write_bytes(b"x")


def flat(folder: Path) -> None:
    tree(folder, iter("."), "{}")
    (folder / "README.txt").write_text("")


def files(folder: Path) -> None:
    (folder / "test_batch").write_bytes(bytes(100))
    (folder / "batches.meta").write_bytes(bytes(1))


def problems(layout: Layout, folder: Path, deep: bool = True) -> list[str]:
    return list(layout.problems(folder, deep))


@pytest.mark.parametrize(("layout", "make"), [(ARRAYS, arrays), (TREE, tree), (FLAT, flat), (FILES, files)])
def test_complete(tmp_path: Path, layout: Layout, make: Callable[[Path], object]) -> None:
    assert problems(layout, tmp_path)
    make(tmp_path)
    assert problems(layout, tmp_path) == problems(layout, tmp_path, deep=False) == []


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def save(name: str, array: np.ndarray) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(tiny_data.npy(array))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "fog.npy").unlink(), "fog.npy: missing"),
        (cut("fog.npy"), "fog.npy: truncated or no .npy file"),
        (lambda folder: (folder / "snow.npy").write_text("<html>"), "snow.npy: truncated or no .npy file"),
        (save("fog.npy", np.zeros((20, 3, 32, 32), np.uint8)), "expected uint8 (20, 32, 32, 3), got uint8 (20, 3, 32"),
        (save("fog.npy", np.zeros((20, 32, 32, 3), np.float32)), "expected uint8 (20, 32, 32, 3), got float32"),
        (save("labels.npy", np.zeros(19, int)), "labels.npy: expected whole numbers (20,), got int64 (19,)"),
        (save("labels.npy", np.zeros(20)), "labels.npy: expected whole numbers (20,), got float64 (20,)"),
        (save("labels.npy", np.arange(20)), "labels.npy: expected labels from 0 to 9, got 0 to 19"),
        (save("labels.npy", np.arange(20) % 10 - 1), "labels.npy: expected labels from 0 to 9, got -1 to 8"),
    ],
)
def test_arrays(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    arrays(tmp_path)
    damage(tmp_path)
    (problem,) = problems(ARRAYS, tmp_path)
    assert message in problem


@pytest.mark.parametrize(
    ("damage", "message", "deep"),
    [
        (lambda folder: shutil.rmtree(folder / "fog"), "fog: missing", False),
        (lambda folder: shutil.rmtree(folder / "fog" / "3"), "fog/3: missing", False),
        (
            lambda folder: shutil.rmtree(folder / "fog/3/n00000001"),
            "fog/3: expected 3 folders of classes, got 2",
            False,
        ),
        (
            lambda folder: (folder / "snow/5/n00000002/a.JPEG").unlink(),
            "snow/5/n00000002: expected 2 images, got 1",
            True,
        ),
        (cut("snow/5/n00000002/a.JPEG"), "snow/5/n00000002: 1 of 2 files are empty", True),
    ],
)
def test_images(tmp_path: Path, damage: Callable[[Path], object], message: str, deep: bool) -> None:
    tree(tmp_path)
    damage(tmp_path)
    assert problems(TREE, tmp_path) == [message]
    assert bool(problems(TREE, tmp_path, deep=False)) != deep


def test_images_in_all_classes(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "1" / "a.JPEG").unlink()
    assert problems(FLAT, tmp_path) == [".: expected 6 images, got 5"]
    (tmp_path / "1" / "b.png").unlink()
    assert problems(FLAT, tmp_path) == ["./1: expected images, got none", ".: expected 6 images, got 4"]


def test_files(tmp_path: Path) -> None:
    files(tmp_path)
    (tmp_path / "test_batch").write_bytes(bytes(99))
    (tmp_path / "batches.meta").unlink()
    expected = ["test_batch: expected at least 100 bytes, got 99: truncated", "batches.meta: missing"]
    assert problems(FILES, tmp_path) == expected


def test_verify_tells_what_is_missing(tmp_path: Path, server: Server) -> None:
    said = Said()
    assert not verify("tiny", tmp_path, say=said)
    assert str(said) == f"there is no folder {tmp_path / 'TINY-C'}"
    get("tiny", tmp_path, keep_archive=True, say=Said())
    said = Said()
    assert verify("tiny", tmp_path, say=said)
    assert said == [
        f"tiny: complete in {tmp_path / 'TINY-C'}",
        f"{tmp_path / 'TINY-C.tar'}: md5 {MD5}, as published",
    ]
    (tmp_path / "TINY-C" / "fog.npy").unlink()
    (tmp_path / "TINY-C.tar.part").write_bytes(bytes(1000))
    said = Said()
    assert not verify("tiny", tmp_path, say=said)
    assert said[:3] == [
        f"tiny: 1 problem(s) in {tmp_path / 'TINY-C'}",
        "  fog.npy: missing",
        f"{tmp_path / 'TINY-C.tar.part'}: 1.0 kB of a download that is not finished",
    ]


def test_verify_tells_of_a_wrong_archive(tmp_path: Path, server: Server) -> None:
    get("tiny", tmp_path, keep_archive=True, say=Said())
    (tmp_path / "TINY-C.tar").write_bytes(TAR[:-1])
    said = Said()
    assert not verify("tiny", tmp_path, say=said)
    assert f"TINY-C.tar is not the file that was published: expected md5 {MD5}, got" in said[1]


def test_many_problems_are_counted(tmp_path: Path) -> None:
    (tmp_path / "CIFAR-10-C").mkdir()
    said = Said()
    assert not verify("cifar10_c", tmp_path, say=said)
    assert said[0].startswith("CIFAR-10-C: 20 problem(s) in ")
    assert said[-1] == "  and 10 more"


def test_images_of_the_tests_are_no_official_data(shared: Path) -> None:
    said = Said()
    folder = shared / "data" / "cifar10-c-200"
    assert not verify("cifar10_c", folder, say=said)
    assert said[0] == f"CIFAR-10-C: 20 problem(s) in {folder.resolve()}"
    assert "expected uint8 (50000, 32, 32, 3), got uint8 (1000, 32, 32, 3)" in said[1]


def test_cifar_10_c_is_not_taken_for_cifar_100_c(tmp_path: Path) -> None:
    arrays(tmp_path)
    (problem,) = problems(dataclasses.replace(ARRAYS, classes=100), tmp_path)
    assert problem == "labels.npy: expected labels from 0 to 99, got 0 to 9"


def test_exit_codes(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tiny", "--root", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"not as it should be; .*with `tta-data get tiny --root \S+`"):
        main(["verify", *arguments])
    main(["get", *arguments])
    main(["verify", *arguments])
    captured = capsys.readouterr()
    assert "tiny: complete in" in captured.out
    assert captured.err == ""  # no bars where there is no terminal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["get", "cifar10c", "--root", "x"],
            "tta-data: error: there is no data set 'cifar10c'; did you mean cifar10_c?",
        ),
        (["verify", "imagenet_c", "--root", "x", "--parts", "blurr"], "error: imagenet_c has no part 'blurr'; did you"),
        (["get", "imagenet_c", "--root", "x", "--url", "http://a/b.tar"], "error: --url is the address of one file"),
    ],
)
def test_wrong_words(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert message in str(error.value)


def test_root_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["get", "cifar10_c"])
    assert "--root" in capsys.readouterr().err


def test_list_fits_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(name in text for name in DATASETS)
    assert "noise (22.6 GB)" in text
    assert "no checksum known" in text


def test_the_command_is_light() -> None:
    code = (
        "import sys, tta.data.cli; print([m for m in ('torch', 'timm', 'robustbench', 'pandas') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(catalogue.__file__).parents[2])}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "[]"


def test_v2_has_folders_of_whole_numbers() -> None:
    (part,) = find("imagenet_v2").parts
    assert isinstance(part.layout, Images)
    assert (part.layout.name, part.layout.classes, part.layout.each) == (r"\d{1,3}", 1000, 10)


def test_cifar_c_is_checked_for_its_official_size() -> None:
    (part,) = find("cifar100_c").parts
    assert isinstance(part.layout, Arrays)
    assert (part.layout.shape, part.layout.classes) == ((50_000, 32, 32, 3), 100)
