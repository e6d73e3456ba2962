from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tta.corruptions import corrupt
from tta.streams import Scenario
from tta.streams.cifar import cifar_c
from tta.streams.corrupted import corrupted
from tta.streams.imagenet import imagenet_c

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_corrupted.py"
PLACES = (0, 500, 999)


class Done(NamedTuple):
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the script in this process, where it need not import everything again."""
    spec = importlib.util.spec_from_file_location("make_corrupted", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_corrupted"] = module
    spec.loader.exec_module(module)

    def run(*words: Any) -> Done:
        error = ""
        try:
            module.main(list(map(str, words)))
        except SystemExit as stop:
            error = str(stop)
        return Done(capsys.readouterr().out, error)

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


def test_what_is_written_is_read_as_cifar_c(run: Run, npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "C"
    for said in ("written: ", " is there already"):  # the second time nothing is made again
        words = [npz, "--out", out, "--limit", 6, "--seed", 3, "--corruptions", "fog", "shot_noise"]
        done = run(*words)
        assert done.stdout.count(said) == 2, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["fog.npy", "labels.npy", "recipe.json", "shot_noise.npy"]
    stream = cifar_c(str(out), corruptions=["fog", "shot_noise"], severity=4)
    clean = torch.from_numpy(np.load(npz)["images"]).permute(0, 3, 1, 2)[:6]
    for batch in stream.batches(stream.plan(Scenario(order="file"), 0)):
        assert batch.labels.tolist() == list(range(6))
        assert torch.equal(batch.images, corrupt(clean, batch.domain, 4, index=torch.arange(6), seed=3))


def test_on_the_fly_pixels_are_those_on_disk(run: Run, npz: Path, tmp_path: Path) -> None:
    assert run(npz, "--out", tmp_path / "C", "--corruptions", "glass_blur", "--seed", 2).stderr == ""
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


def test_a_folder_becomes_imagenet_c_with_the_pixels_of_the_stream_as_jpeg(
    run: Run, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "C"
    done = run(photographs, "--out", out, "--corruptions", "gaussian_noise", "motion_blur")
    assert done.stdout.count("3 images") == 10, done.stderr
    on_disk = imagenet_c(str(out), ["gaussian_noise", "motion_blur"], severity=3, workers=0)
    on_the_fly = corrupted(str(photographs), ["gaussian_noise", "motion_blur"], severity=3, workers=0)
    pairs = zip(*(stream.batches(stream.plan(Scenario(), 1)) for stream in (on_disk, on_the_fly)), strict=True)
    for one, other in pairs:
        assert torch.equal(one.labels, other.labels)
        assert sorted(one.labels.tolist()) == list(PLACES)
        for written, made in zip(one.images, other.images, strict=True):
            assert np.array_equal(written.permute(1, 2, 0).numpy(), jpeg(made))


def test_processes_write_what_one_writes(run: Run, photographs: Path, tmp_path: Path) -> None:
    words = [photographs, "--corruptions", "contrast", "gaussian_noise", "--out"]
    run(*words, tmp_path / "one")
    command = [sys.executable, SCRIPT, *words, tmp_path / "two", "--workers", "2"]
    subprocess.run(list(map(str, command)), check=True)
    folders = [tmp_path / name for name in ("one", "two")]
    one, two = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*.*")} for f in folders)
    assert one == two
    assert len(one) == 2 * 5 * 3 + 1


def test_a_folder_that_was_cut_off_is_completed(run: Run, photographs: Path, tmp_path: Path) -> None:
    words = [photographs, "--out", tmp_path / "C", "--corruptions", "contrast"]
    assert run(*words).stderr == ""
    files = sorted((tmp_path / "C").rglob("*.JPEG"))
    assert len(files) == 15
    content = files[4].read_bytes()
    before = {file: file.stat().st_mtime_ns for file in files}
    files[4].unlink()
    done = run(*words)
    assert done.stdout.count("1 images") == 1
    assert done.stdout.count("is there already") == 4
    assert files[4].read_bytes() == content
    assert [file for file in files if file.stat().st_mtime_ns != before[file]] == [files[4]]
    assert sorted((tmp_path / "C").rglob("*.*")) == sorted([*files, tmp_path / "C" / "recipe.json"])


def test_images_of_other_sizes_are_cropped(run: Run, tmp_path: Path) -> None:
    (tmp_path / "clean" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (80, 70), (200, 100, 0)).save(tmp_path / "clean" / "n01440764" / "a.png")
    words = [tmp_path / "clean", "--out", tmp_path / "C", "--corruptions", "fog", "--scale", 224]
    assert "resize and crop the images with --size=<pixels>" in run(*words).stderr
    done = run(*words, "--size", 48)
    assert done.stderr == ""
    with Image.open(tmp_path / "C" / "fog" / "2" / "n01440764" / "a.JPEG") as image:
        assert image.size == (48, 48)


def test_unreadable_images_are_left_out_if_asked_for(run: Run, photographs: Path, tmp_path: Path) -> None:
    bad = photographs / "n01440764" / "z.png"
    bad.write_bytes(b"<html>")
    words = [photographs, "--out", tmp_path / "C", "--corruptions", "contrast"]
    assert "z.png (not an image). Fetch the data again, or leave such images out" in run(*words).stderr
    done = run(*words, "--on_error", "skip")
    assert done.stdout.count("left out: ") == 5, done.stderr
    assert len(list((tmp_path / "C").rglob("*.JPEG"))) == 15


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1"], "was made with seed 0 instead of 1: choose another --out, or delete it"),
        (["--limit", "3", "--scale", "224"], "was made with images 8 instead of 3, scale 32 instead of 224"),
        (["--limit", "0"], "--limit must be a whole number of at least 1, got 0"),
        (["--workers", "0"], "--workers must be a whole number of at least 1, got 0"),
        (["--size", "64"], "--size=64 is for folders"),
    ],
)
def test_what_another_recipe_made_is_not_mixed_with(
    run: Run, npz: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    common = [npz, "--out", tmp_path / "C", "--corruptions", "contrast"]
    assert run(*common).stderr == ""
    done = run(*common, *words)
    assert done.stderr.startswith("make_corrupted: error: ")
    assert message in done.stderr
    assert json.loads((tmp_path / "C" / "recipe.json").read_text())["seed"] == 0


def test_files_of_others_are_left_alone(run: Run, npz: Path, tmp_path: Path) -> None:
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "labels.npy").write_bytes(b"official")
    assert "C holds files that were not made here: choose another --out" in run(npz, "--out", tmp_path / "C").stderr
    assert (tmp_path / "C" / "labels.npy").read_bytes() == b"official"


def test_names_that_would_be_one_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "clean" / "a").mkdir(parents=True)
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / "clean" / "a" / name)
    done = run(tmp_path / "clean", "--out", tmp_path / "C", "--corruptions", "fog")
    assert "images of one class whose names differ in their ending alone: rename them" in done.stderr


def test_a_source_that_is_not_there(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path / "x.npz", "--out", tmp_path / "C")
    assert f"error: SOURCE: there is no {tmp_path / 'x.npz'}" in done.stderr
    assert not (tmp_path / "C").exists()
