from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.errors import raises_naming
from helpers.scripts import load_script
from tta.corruptions import corrupt
from tta.streams import Scenario
from tta.streams.datasets.cifar import cifar_c
from tta.streams.datasets.corrupted import corrupted
from tta.streams.datasets.imagenet import imagenet_c

script = load_script("make_corrupted")
PLACES = (0, 500, 999)
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the script with these words; what it prints is returned."""

    def run(*words: object) -> str:
        script.main(list(map(str, words)))
        return capsys.readouterr().out

    return run


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "clean.npz", images=images, labels=np.arange(8))
    return tmp_path / "clean.npz"


@pytest.fixture
def photographs(shared: Path, tmp_path: Path) -> Path:
    """Three classes of ImageNet, one photograph of 224 pixels each."""
    folders = sorted((shared / "data" / "imagenet-224-1000").iterdir())
    for place in PLACES:
        (tmp_path / "clean" / folders[place].name).mkdir(parents=True)
        (file,) = folders[place].iterdir()
        (tmp_path / "clean" / folders[place].name / file.name).symlink_to(file)
    return tmp_path / "clean"


def test_npz__becomes_cifar_c(run: Run, npz: Path, tmp_path: Path) -> None:
    """Severity s is in the rows [N(s-1), Ns), and a second call makes nothing again."""
    out = tmp_path / "C"
    words = [npz, "--out", out, "--limit", 6, "--seed", 3, "--corruptions", "fog", "shot_noise"]
    run(*words)
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("[fs]*.npy")}
    assert sorted(path.name for path in out.iterdir()) == ["fog.npy", "labels.npy", "recipe.json", "shot_noise.npy"]
    clean = torch.from_numpy(np.load(npz)["images"]).permute(0, 3, 1, 2)[:6]
    for severity in (1, 4):
        stream = cifar_c(str(out), corruptions=["fog", "shot_noise"], severity=severity)
        for batch in stream.batches(stream.plan(Scenario(order="file"), 0)):
            assert batch.labels.tolist() == list(range(6))
            expected = corrupt(clean, batch.domain, severity, index=torch.arange(6), seed=3)
            assert torch.equal(batch.images, expected)
    run(*words)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("[fs]*.npy")} == made


def test_npz__has_the_pixels_of_the_stream(run: Run, npz: Path, tmp_path: Path) -> None:
    run(npz, "--out", tmp_path / "C", "--corruptions", "glass_blur", "--seed", 2)
    streams = (
        cifar_c(str(tmp_path / "C"), corruptions="glass_blur", batch_size=8),
        corrupted(str(npz), "glass_blur", seed=2, workers=0),
    )
    (one,), (other,) = (list(stream.batches(stream.plan(Scenario(), 1))) for stream in streams)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.index, other.index)


def jpeg(pixels: torch.Tensor) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=85)
    return np.asarray(Image.open(buffer))


def test_folder__becomes_imagenet_c(run: Run, photographs: Path, tmp_path: Path) -> None:
    """Its files are the stream's pixels as JPEG."""
    out, names = tmp_path / "C", ["gaussian_noise", "motion_blur"]
    run(photographs, "--out", out, "--corruptions", *names)
    on_disk = imagenet_c(str(out), names, severity=3, workers=0)
    on_the_fly = corrupted(str(photographs), names, severity=3, workers=0)
    pairs = zip(*(stream.batches(stream.plan(Scenario(), 1)) for stream in (on_disk, on_the_fly)), strict=True)
    for one, other in pairs:
        assert torch.equal(one.labels, other.labels)
        assert sorted(one.labels.tolist()) == list(PLACES)
        for written, made in zip(one.images, other.images, strict=True):
            assert np.array_equal(written.permute(1, 2, 0).numpy(), jpeg(made))


@pytest.mark.slow
def test_workers__write_the_same_files(run: Run, photographs: Path, tmp_path: Path) -> None:
    words = [photographs, "--corruptions", "contrast", "gaussian_noise", "--out"]
    run(*words, tmp_path / "one")
    run(*words, tmp_path / "two", "--workers", 2)
    folders = [tmp_path / name for name in ("one", "two")]
    one, two = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*.*")} for f in folders)
    assert one == two
    assert len(one) == 2 * 5 * 3 + 1


def test_folder__that_was_cut_off_is_completed(run: Run, photographs: Path, tmp_path: Path) -> None:
    words = [photographs, "--out", tmp_path / "C", "--corruptions", "contrast"]
    run(*words)
    files = sorted((tmp_path / "C").rglob("*.JPEG"))
    assert len(files) == 15
    content = files[4].read_bytes()
    before = {file: file.stat().st_mtime_ns for file in files}
    files[4].unlink()
    run(*words)
    assert files[4].read_bytes() == content
    assert [file for file in files if file.stat().st_mtime_ns != before[file]] == [files[4]]
    assert sorted((tmp_path / "C").rglob("*.*")) == sorted([*files, tmp_path / "C" / "recipe.json"])


def test_folder__size_crops_images(run: Run, tmp_path: Path) -> None:
    (tmp_path / "clean" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (80, 70), (200, 100, 0)).save(tmp_path / "clean" / "n01440764" / "a.png")
    words = [tmp_path / "clean", "--out", tmp_path / "C", "--corruptions", "fog", "--scale", 224]
    with raises_naming(SystemExit, "--size"):
        run(*words)
    run(*words, "--size", 48)
    with Image.open(tmp_path / "C" / "fog" / "2" / "n01440764" / "a.JPEG") as image:
        assert image.size == (48, 48)


def test_folder__unreadable_images(run: Run, photographs: Path, tmp_path: Path) -> None:
    """They are an error unless they are to be left out."""
    (photographs / "n01440764" / "z.png").write_bytes(b"<html>")
    words = [photographs, "--out", tmp_path / "C", "--corruptions", "contrast"]
    with raises_naming(SystemExit, "z.png"):
        run(*words)
    assert run(*words, "--on_error", "skip").count("z.png") == 5
    assert len(list((tmp_path / "C").rglob("*.JPEG"))) == 15


def test_folder__names_that_would_be_one_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "clean" / "a").mkdir(parents=True)
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / "clean" / "a" / name)
    with raises_naming(SystemExit, tmp_path / "clean"):
        run(tmp_path / "clean", "--out", tmp_path / "C", "--corruptions", "fog")


def test_recipe__another_is_refused(run: Run, npz: Path, tmp_path: Path) -> None:
    common = [npz, "--out", tmp_path / "C", "--corruptions", "contrast"]
    run(*common)
    recipe = (tmp_path / "C" / "recipe.json").read_text()
    for words, named in (
        (["--seed", "1"], ["seed", 0, 1]),
        (["--limit", "3", "--scale", "224"], ["images", 8, 3, "scale", 32, 224]),
    ):
        with raises_naming(SystemExit, *named, "--out"):
            run(*common, *words)
    assert (tmp_path / "C" / "recipe.json").read_text() == recipe
    assert json.loads(recipe)["seed"] == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--limit", 0], ["--limit", 0]),
        (["--workers", 0], ["--workers", 0]),
        (["--size", 64], ["--size", 64]),
    ],
    ids=["limit", "workers", "size of an npz"],
)
def test_options__wrong_value(run: Run, npz: Path, tmp_path: Path, words: list[object], named: list[object]) -> None:
    with raises_naming(SystemExit, *named):
        run(npz, "--out", tmp_path / "C", *words)
    assert not (tmp_path / "C").exists()


def test_source__that_is_not_there(run: Run, tmp_path: Path) -> None:
    with raises_naming(SystemExit, "SOURCE", tmp_path / "x.npz"):
        run(tmp_path / "x.npz", "--out", tmp_path / "C")
    assert not (tmp_path / "C").exists()


def test_files__of_others_are_left_alone(run: Run, npz: Path, tmp_path: Path) -> None:
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "labels.npy").write_bytes(b"official")
    with raises_naming(SystemExit, tmp_path / "C", "--out"):
        run(npz, "--out", tmp_path / "C")
    assert (tmp_path / "C" / "labels.npy").read_bytes() == b"official"
