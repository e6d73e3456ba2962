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
from helpers.errors import assert_names, raises_naming
from helpers.faulty_server import Server
from helpers.tiny_data import MD5, TAR, Said
from tta.data import catalogue
from tta.data.catalogue import DATASETS
from tta.data.cli import main
from tta.data.layouts import Files, Images, Layout
from tta.data.obtain import get
from tta.data.verify import verify

ARRAYS = tiny_data.LAYOUT
TREE = Images(("fog", "snow"), classes=3, each=2)
FLAT = Images(classes=3, name=r"\d{1,3}", total=6)
FILES = Files({"test_batch": 100, "batches.meta": 1})

Damage = Callable[[Path], object]


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
def test_layout__complete_has_no_problem(tmp_path: Path, layout: Layout, make: Callable[[Path], object]) -> None:
    assert problems(layout, tmp_path)
    make(tmp_path)
    assert problems(layout, tmp_path) == problems(layout, tmp_path, deep=False) == []


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def save(name: str, array: np.ndarray) -> Damage:
    return lambda folder: (folder / name).write_bytes(tiny_data.npy(array))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "fog.npy").unlink(), ["fog.npy"]),
        (cut("fog.npy"), ["fog.npy"]),
        (lambda folder: (folder / "snow.npy").write_text("<html>"), ["snow.npy"]),
        (save("fog.npy", np.zeros((20, 3, 32, 32), np.uint8)), ["fog.npy", "(20, 32, 32, 3)", "(20, 3, 32, 32)"]),
        (save("fog.npy", np.zeros((20, 32, 32, 3), np.float32)), ["fog.npy", "uint8", "float32"]),
        (save("labels.npy", np.zeros(19, int)), ["labels.npy", "(20,)", "(19,)"]),
        (save("labels.npy", np.zeros(20)), ["labels.npy", "float64"]),
        (save("labels.npy", np.arange(20)), ["labels.npy", "0 to 9", "0 to 19"]),
        (save("labels.npy", np.arange(20) % 10 - 1), ["labels.npy", "0 to 9", "-1 to 8"]),
    ],
)
def test_arrays__damage_is_named(tmp_path: Path, damage: Damage, named: list[str]) -> None:
    arrays(tmp_path)
    damage(tmp_path)
    (problem,) = problems(ARRAYS, tmp_path)
    assert_names(problem, *named)


def test_arrays__labels_of_fewer_classes_are_others(tmp_path: Path) -> None:
    """CIFAR-10-C is not taken for CIFAR-100-C, whose files look the same."""
    arrays(tmp_path)
    (problem,) = problems(dataclasses.replace(ARRAYS, classes=100), tmp_path)
    assert_names(problem, "labels.npy", "0 to 99", "0 to 9")


@pytest.mark.parametrize(
    ("damage", "named", "deep"),
    [
        (lambda folder: shutil.rmtree(folder / "fog"), ["fog"], False),
        (lambda folder: shutil.rmtree(folder / "fog" / "3"), ["fog/3"], False),
        (lambda folder: shutil.rmtree(folder / "fog/3/n00000001"), ["fog/3", "3", "2"], False),
        (lambda folder: (folder / "snow/5/n00000002/a.JPEG").unlink(), ["snow/5/n00000002", "2", "1"], True),
        (cut("snow/5/n00000002/a.JPEG"), ["snow/5/n00000002", "1 of 2"], True),
    ],
)
def test_images__damage_is_named(tmp_path: Path, damage: Damage, named: list[str], deep: bool) -> None:
    """What lies within the folders of classes is looked at in a deep check alone."""
    tree(tmp_path)
    damage(tmp_path)
    (problem,) = problems(TREE, tmp_path)
    assert problem.startswith(f"{named[0]}:")
    assert_names(problem, *named[1:])
    assert bool(problems(TREE, tmp_path, deep=False)) != deep


def test_images__are_counted_over_all_classes(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "1" / "a.JPEG").unlink()
    (all_of_them,) = problems(FLAT, tmp_path)
    assert_names(all_of_them, "6", "5")
    (tmp_path / "1" / "b.png").unlink()
    of_class, all_of_them = problems(FLAT, tmp_path)
    assert_names(of_class, "./1")
    assert_names(all_of_them, "6", "4")


def test_files__short_and_missing_are_named(tmp_path: Path) -> None:
    files(tmp_path)
    (tmp_path / "test_batch").write_bytes(bytes(99))
    (tmp_path / "batches.meta").unlink()
    short, missing = problems(FILES, tmp_path)
    assert_names(short, "test_batch", "100", "99")
    assert_names(missing, "batches.meta")


def test_verify__tells_what_is_there_and_what_not(tmp_path: Path, server: Server) -> None:
    said = Said()
    assert not verify("tiny", tmp_path, say=said)
    assert_names(str(said), tmp_path / "TINY-C")
    get("tiny", tmp_path, keep_archive=True, say=Said())
    said = Said()
    assert verify("tiny", tmp_path, say=said)
    assert_names(said[0], "tiny", tmp_path / "TINY-C")
    assert_names(said[1], tmp_path / "TINY-C.tar", MD5)
    (tmp_path / "TINY-C" / "fog.npy").unlink()
    (tmp_path / "TINY-C.tar.part").write_bytes(bytes(1000))
    said = Said()
    assert not verify("tiny", tmp_path, say=said)
    assert_names(said[0], "tiny", "1 ", tmp_path / "TINY-C")
    assert_names(said[1], "fog.npy")
    assert_names(said[2], tmp_path / "TINY-C.tar.part", "1.0 kB")


def test_verify__wrong_archive_is_a_fault(tmp_path: Path, server: Server) -> None:
    get("tiny", tmp_path, keep_archive=True, say=Said())
    (tmp_path / "TINY-C.tar").write_bytes(TAR[:-1])
    said = Said()
    assert not verify("tiny", tmp_path, say=said)
    assert_names(said[1], "TINY-C.tar", MD5, tiny_data.md5(TAR[:-1]))


def test_verify__many_problems_are_counted(tmp_path: Path) -> None:
    (tmp_path / "CIFAR-10-C").mkdir()
    said = Said()
    assert not verify("cifar10_c", tmp_path, say=said)
    assert_names(said[0], "CIFAR-10-C", "20")
    assert len(said) == 12
    assert_names(said[-1], "10")


def test_verify__a_sample_is_no_official_data(shared: Path) -> None:
    said = Said()
    folder = shared / "data" / "cifar10-c-200"
    assert not verify("cifar10_c", folder, say=said)
    assert_names(said[0], "CIFAR-10-C", "20", folder.resolve())
    assert_names(said[1], "(50000, 32, 32, 3)", "(1000, 32, 32, 3)")


def test_command__exits_with_1_until_all_is_there(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tiny", "--root", str(tmp_path)]
    with raises_naming(SystemExit, f"tta-data get tiny --root {tmp_path}"):
        main(["verify", *arguments])
    main(["get", *arguments])
    main(["verify", *arguments])
    captured = capsys.readouterr()
    assert str(tmp_path / "TINY-C") in captured.out
    assert captured.err == ""  # no bars where there is no terminal


def test_command__wrong_words_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with raises_naming(SystemExit, "tta-data", "cifar10c", "cifar10_c"):
        main(["get", "cifar10c", "--root", "x"])
    with raises_naming(SystemExit, "tta-data", "imagenet_c", "blurr", "blur"):
        main(["verify", "imagenet_c", "--root", "x", "--parts", "blurr"])
    with raises_naming(SystemExit, "tta-data", "--url"):
        main(["get", "imagenet_c", "--root", "x", "--url", "http://a/b.tar"])
    with pytest.raises(SystemExit):
        main(["get", "cifar10_c"])
    assert "--root" in capsys.readouterr().err


def test_list__fits_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(name in text for name in DATASETS)
    assert "noise (22.6 GB)" in text


def test_command__loads_no_heavy_library() -> None:
    code = (
        "import sys, tta.data.cli; print([m for m in ('torch', 'timm', 'robustbench', 'pandas') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(catalogue.__file__).parents[2])}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "[]"
