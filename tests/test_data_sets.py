"""Data sets with a part of the classes, or of the images, from the command line to the files of a run."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers.compositions import composed
from tta.compare import main as compare
from tta.runs import fingerprint
from tta.streams.classes import imagenet_classes, part_classes
from tta.streams.imagenet import imagenet_c

Command = Callable[..., None]
R = list(part_classes("imagenet_r"))
PLACES = [imagenet_classes()[wnid] for wnid in R]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of ImageNet-R, two images each; weights of one network for 1 000, those 200, and 10 classes."""
    root = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for place in (0, 3, 50, 199):
        folder = root / "imagenet-r" / R[place]
        folder.mkdir(parents=True)
        for name in "ab":
            pixels = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
            Image.fromarray(pixels).save(folder / f"{name}.png")
    torch.manual_seed(0)
    state = timm.create_model("test_efficientnet", num_classes=1000).state_dict()
    head = {name for name, value in state.items() if value.shape[:1] == (1000,)}
    assert len(head) == 2
    for classes, rows in ((1000, list(range(1000))), (200, PLACES), (10, list(range(10)))):
        part = {name: (value[rows] if name in head else value).contiguous() for name, value in state.items()}
        save_file(part, str(root / f"{classes}.safetensors"))
    return root


@pytest.fixture
def words(files: Path) -> list[str]:
    model = ["model=timm", "model.name=test_efficientnet", f"model.checkpoint={files}/1000.safetensors", "device=cpu"]
    return [*model, "stream.workers=0", "stream.size=64", "stream.batch_size=4", "method=bn_adapt"]


def only_run(folder: Path) -> Path:
    (file,) = folder.rglob("summary.json")
    return file.parent


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((only_run(folder) / "summary.json").read_text())


def test_a_backbone_of_1000_is_restricted_and_one_of_the_200_is_not(
    tta_command: Command,
    files: Path,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = ["stream=imagenet_r", f"stream.root={files}"]
    for method in ("source", "tent"):
        for classes in (1000, 200):
            checkpoint = f"model.checkpoint={files}/{classes}.safetensors"
            tta_command(*words, *stream, f"runs_dir={method}/{classes}", checkpoint, f"method={method}")
        whole, part = (summary(tmp_path / method / str(classes)) for classes in (1000, 200))
        assert (whole["classes"], whole["classes_of_the_backbone"]) == (200, 1000)
        assert (part["classes"], part["classes_of_the_backbone"]) == (200, 200)
        for key in ("accuracy", "online_accuracy", "subset"):
            assert whole[key] == part[key]
        (first,), (second,) = whole["domains"], part["domains"]
        assert first["entropy"] == pytest.approx(second["entropy"], rel=1e-4)
        with (only_run(tmp_path / method / "1000") / "classes.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        assert [int(row["class"]) for row in rows if int(row["labels"])] == [0, 3, 50, 199]
        assert len(rows) == 200
    capsys.readouterr()
    compare([str(tmp_path / "source")])
    text = (tmp_path / "source" / "comparison-1.md").read_text() + (tmp_path / "source" / "comparison-2.md").read_text()
    assert text.count("online accuracy in per cent; 200 of 1000 classes, 8 images") == 1
    assert text.count("online accuracy in per cent; 8 images") == 1
    assert "severity" not in text


def test_logits_of_the_part_decide(files: Path) -> None:
    """The weights made above tell classes apart, or the test before would compare nothing."""
    state = load_file(str(files / "1000.safetensors"))
    net = timm.create_model("test_efficientnet", num_classes=1000)
    net.load_state_dict(state)
    net.eval()
    logits = net(torch.rand(20, 3, 64, 64))
    assert not torch.isin(logits.argmax(-1), torch.tensor(PLACES)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["model.checkpoint={files}/10.safetensors"],
            "has 10 classes, the stream has 200: .*these classes, or for the 1000 that they are of",
        ),
        (
            ["model.checkpoint={files}/200.safetensors", "stream=imagenet_sketch", "stream.root={files}/imagenet-r"],
            r"has 200 classes, the stream has 1000: choose a model trained for these classes \(model",
        ),
        (["scenario=gradual"], r"unexpected keyword argument 'severity' .*as scenario=gradual gives stream.severity"),
    ],
)
def test_what_does_not_fit(
    tta_command: Command,
    files: Path,
    words: list[str],
    changes: list[str],
    message: str,
) -> None:
    stream = ["stream=imagenet_r", f"stream.root={files}"]
    with pytest.raises(SystemExit, match=message):
        tta_command(*words, *stream, *(word.format(files=files) for word in changes))


def test_a_subset_is_named_in_the_run_its_summary_and_the_table(
    tta_command: Command,
    files: Path,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data" / "fog").mkdir(parents=True)
    (tmp_path / "data" / "fog" / "5").symlink_to(files / "imagenet-r")
    (tmp_path / "few.txt").write_text(f"{R[3]}/a.png\n{R[0]}/b.png\n")
    c = [*words, "stream=imagenet_c", "stream.root=data", "stream.corruptions=fog", "method=source", "stream.size=84"]
    tta_command(*c)
    tta_command(*c, "stream.subset=few.txt")
    (few,) = (tmp_path / "runs").glob("imagenet_c-few-*_single_domain_timm_source_seed0-*")
    found = json.loads((few / "summary.json").read_text())
    assert found["images"] == 2
    assert found["subset"] == few.name.partition("_single")[0].removeprefix("imagenet_c-")
    assert found["config"]["stream"]["subset"] == "few.txt"
    # Another list under the same name is another run.
    (tmp_path / "few.txt").write_text(f"{R[3]}/a.png\n{R[0]}/a.png\n")
    tta_command(*c, "stream.subset=few.txt")
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 3
    capsys.readouterr()
    compare([str(tmp_path / "runs")])
    headings = [path.read_text().partition(":")[0] for path in (tmp_path / "runs").glob("*.md")]
    assert len(headings) == 3
    assert sum(heading.startswith(f"imagenet_c ({found['subset']}), single_domain") for heading in headings) == 1
    assert sum(heading.startswith("imagenet_c, single_domain") for heading in headings) == 1
    with pytest.raises(SystemExit, match="5000 of its 5000 images are not in data/fog/5"):
        tta_command(*c, "stream.subset=robustbench_5k")


@pytest.mark.parametrize("stream", ["imagenet_c", "corrupted"])
def test_results_older_than_the_keys_are_found(stream: str) -> None:
    parts: Any = OmegaConf.to_container(composed(f"stream={stream}"))
    old = {**parts, "stream": {k: v for k, v in parts["stream"].items() if k not in ("subset", "classes")}}
    assert fingerprint(old, "w", "d") == fingerprint(parts, "w", "d")
    new = {**parts, "stream": {**parts["stream"], "subset": "robustbench_5k"}}
    assert fingerprint(new, "w", "d") != fingerprint(parts, "w", "d")


def test_the_name_of_whole_data_is_what_it_was(files: Path, tmp_path: Path) -> None:
    """Results of ImageNet-C made before there were subsets have this name of the data."""
    (tmp_path / "fog").mkdir()
    (tmp_path / "fog" / "5").symlink_to(files / "imagenet-r")
    stream = imagenet_c(str(tmp_path), "fog", size=84, workers=0)
    (domain,) = stream.domains
    content = hashlib.sha256(b"fog-5" + domain.labels.numpy().tobytes())
    content.update(domain.load(torch.tensor([0, 2, 4, 6])).images.contiguous().numpy().tobytes())
    assert stream.digest == content.hexdigest()[:12]
