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
from helpers.errors import raises_naming
from tta.compare import main as compare
from tta.runs.fingerprint import fingerprint
from tta.streams.datasets.imagenet import imagenet_c
from tta.streams.label_spaces import imagenet_classes, subset_classes

Command = Callable[..., None]
R = list(subset_classes("imagenet_r"))
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


def tables(runs_dir: Path) -> list[str]:
    """Tables that tta-compare writes of these runs, one for each kind of data and network."""
    compare([str(runs_dir)])
    return [path.read_text() for path in runs_dir.glob("*.md")]


def test_restricted_backbone__equals_one_of_the_part(
    tta_command: Command, files: Path, words: list[str], tmp_path: Path
) -> None:
    """A network for 1000 classes on 200 of them scores as one whose classifier has these 200 rows."""
    for method in ("source", "tent"):
        for classes in (1000, 200):
            checkpoint = f"model.checkpoint={files}/{classes}.safetensors"
            stream = ["stream=imagenet_r", f"stream.root={files}"]
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
    assert sorted("200 of 1000" in text for text in tables(tmp_path / "source")) == [False, True]


def test_restricted_backbone__discards_other_classes(files: Path) -> None:
    """The network above prefers classes outside the part, or the test before would compare nothing."""
    net = timm.create_model("test_efficientnet", num_classes=1000)
    net.load_state_dict(load_file(str(files / "1000.safetensors")))
    logits = net.eval()(torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert not torch.isin(logits.argmax(-1), torch.tensor(PLACES)).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["model.checkpoint={files}/10.safetensors"], (" 10 ", 200, 1000)),
        (
            ["model.checkpoint={files}/200.safetensors", "stream=imagenet_sketch", "stream.root={files}/imagenet-r"],
            (200, 1000, "model"),
        ),
        (["scenario=gradual"], ("severity", "scenario=gradual")),
    ],
    ids=["10 classes", "200 classes", "gradual"],
)
def test_natural_stream__rejects_what_does_not_fit(
    tta_command: Command, files: Path, words: list[str], changes: list[str], named: tuple[object, ...]
) -> None:
    stream = ["stream=imagenet_r", f"stream.root={files}"]
    with raises_naming(SystemExit, *named):
        tta_command(*words, *stream, *(word.format(files=files) for word in changes))


def test_subset__is_named_in_results(tta_command: Command, files: Path, words: list[str], tmp_path: Path) -> None:
    """In the run's directory, its summary and its table; another list under the same name is another run."""
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
    (tmp_path / "few.txt").write_text(f"{R[3]}/a.png\n{R[0]}/a.png\n")
    tta_command(*c, "stream.subset=few.txt")
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 3
    texts = tables(tmp_path / "runs")
    assert len(texts) == 3
    assert sum(found["subset"] in text for text in texts) == 1
    with raises_naming(SystemExit, "data/fog/5", 5000):
        tta_command(*c, "stream.subset=robustbench_5k")


@pytest.mark.parametrize("stream", ["imagenet_c", "corrupted"])
def test_fingerprint__ignores_the_whole_data(stream: str) -> None:
    """Runs saved without the keys subset and classes match those that have them at null."""
    parts: Any = OmegaConf.to_container(composed(f"stream={stream}"))
    without = {**parts, "stream": {k: v for k, v in parts["stream"].items() if k not in ("subset", "classes")}}
    assert fingerprint(without, "w", "d") == fingerprint(parts, "w", "d")
    new = {**parts, "stream": {**parts["stream"], "subset": "robustbench_5k"}}
    assert fingerprint(new, "w", "d") != fingerprint(parts, "w", "d")


def test_digest__of_whole_data_is_stable(files: Path, tmp_path: Path) -> None:
    """Saved results of ImageNet-C carry this digest, so its recipe must not change."""
    (tmp_path / "fog").mkdir()
    (tmp_path / "fog" / "5").symlink_to(files / "imagenet-r")
    stream = imagenet_c(str(tmp_path), "fog", size=84, workers=0)
    (domain,) = stream.domains
    content = hashlib.sha256(b"fog-5" + domain.labels.numpy().tobytes())
    content.update(domain.load(torch.tensor([0, 2, 4, 6])).images.contiguous().numpy().tobytes())
    assert stream.digest == content.hexdigest()[:12]
