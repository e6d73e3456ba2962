"""``stream.subset`` and ``stream.classes``: a chosen part of a data set's images, or of its classes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.errors import raises_naming
from tta.corruptions import corrupt
from tta.models import import_robustbench
from tta.streams import Scenario, Stream
from tta.streams.datasets import image_folder as listing
from tta.streams.datasets.corrupted import corrupted
from tta.streams.datasets.image_folder import read_subset
from tta.streams.datasets.imagenet import imagenet_c
from tta.streams.datasets.imagenet_variants import clean
from tta.streams.datasets.labelled_dataset import open_labelled
from tta.streams.label_spaces import imagenet_classes, subset_classes

WNIDS = list(imagenet_classes())
CHOSEN = [(WNIDS[7], "b"), (WNIDS[2], "a"), (WNIDS[7], "a")]


def pixels(wnid: str, name: str) -> np.ndarray:
    return np.random.default_rng([imagenet_classes()[wnid], ord(name)]).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def val(tmp_path: Path) -> Path:
    """Three classes, three images each."""
    for wnid in (WNIDS[2], WNIDS[5], WNIDS[7]):
        folder = tmp_path / "val" / wnid
        folder.mkdir(parents=True)
        for name in "abc":
            Image.fromarray(pixels(wnid, name)).save(folder / f"{name}.png")
    return tmp_path / "val"


@pytest.fixture
def chosen(tmp_path: Path) -> str:
    lines = [f"{wnid}/{name}.png" for wnid, name in CHOSEN]
    (tmp_path / "mine.txt").write_text("\r\n".join(lines) + "\n\n")
    return str(tmp_path / "mine.txt")


def images(stream: Stream) -> dict[str, tuple[torch.Tensor, list[int]]]:
    batches = stream.batches(stream.plan(Scenario(order="file"), 0))
    return {batch.domain: (batch.images, batch.labels.tolist()) for batch in batches}


def test_robustbench_5k__is_read_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "robustbench"]:
        monkeypatch.delitem(sys.modules, name)
    subset = read_subset("robustbench_5k")
    assert "robustbench" not in sys.modules
    assert subset is not None
    assert subset.name == "robustbench_5k"
    assert len(set(subset.files)) == 5000
    assert {wnid for wnid, _ in subset.files} <= set(WNIDS)
    assert subset.files[0] == ("n09468604", "ILSVRC2012_val_00015253.JPEG")


def test_robustbench_5k__is_the_list_robustbench_takes() -> None:
    loaders, subset = import_robustbench("loaders"), read_subset("robustbench_5k")
    own = loaders.make_custom_dataset("", "helper_files/imagenet_test_image_ids.txt", imagenet_classes())
    assert subset is not None
    assert [(f"{wnid}/{file}", imagenet_classes()[wnid]) for wnid, file in subset.files] == own


def test_subset__gives_its_images_in_its_order(val: Path, chosen: str) -> None:
    expected = torch.stack([torch.from_numpy(pixels(*one)).permute(2, 0, 1) for one in CHOSEN])
    stream = clean(str(val), workers=0, subset=chosen)
    found, labels = images(stream)["clean"]
    assert torch.equal(found, expected)
    assert labels == [7, 2, 7]
    assert stream.subset is not None
    assert stream.subset.startswith("mine-")
    made = corrupted(str(val), "fog", workers=0, subset=chosen)
    fog = corrupt(expected, "fog", 5, index=torch.arange(3), seed=0)
    torch.testing.assert_close(images(made)["fog"][0].int(), fog.int(), rtol=0, atol=1)
    assert made.subset == stream.subset


def test_subset__applies_to_each_corruption(val: Path, chosen: str, tmp_path: Path) -> None:
    for name in ("near_focus", "fog_3d"):
        for severity in "24":
            (tmp_path / "ImageNet-3DCC" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "ImageNet-3DCC" / name / severity).symlink_to(val)
    options: dict[str, Any] = {"severity": [2, 4], "size": 32, "workers": 0, "dataset": "imagenet_3dcc"}
    stream = imagenet_c(str(tmp_path / "ImageNet-3DCC"), ["near_focus", "fog_3d"], subset=chosen, **options)
    assert [(str(domain), domain.labels.tolist()) for domain in stream.domains] == [
        (f"{name}-{severity}", [7, 2, 7]) for name in ("near_focus", "fog_3d") for severity in "24"
    ]
    assert imagenet_c(str(tmp_path / "ImageNet-3DCC"), "fog_3d", **options).domains[0].labels.tolist() == [
        *[2] * 3, *[5] * 3, *[7] * 3
    ]  # fmt: skip


def test_subset__digest_is_of_the_lists_content(val: Path, chosen: str, tmp_path: Path) -> None:
    def digest(subset: str | None) -> str:
        return clean(str(val), workers=0, subset=subset).digest

    whole = tmp_path / "whole.txt"
    whole.write_text("\n".join(f"{p.parent.name}/{p.name}" for p in sorted(val.glob("*/*"))))
    known = digest(chosen)
    assert len({known, digest(None), digest(str(whole))}) == 3
    lines = Path(chosen).read_text().replace("\r", "")
    Path(chosen).write_text(lines)
    assert digest(chosen) == known
    Path(chosen).write_text(lines.replace("a.png", "c.png"))
    assert digest(chosen) != known


def test_subset__missing_images_are_counted(val: Path, chosen: str) -> None:
    (val / CHOSEN[1][0] / "a.png").unlink()
    (val / CHOSEN[2][0] / "a.png").unlink()
    with raises_naming(FileNotFoundError, "stream.subset=mine-", 2, 3, val, f"{WNIDS[2]}/a.png"):
        clean(str(val), subset=chosen)
    with raises_naming(FileNotFoundError, "stream.subset=robustbench_5k", 5000, val):
        clean(str(val), subset="robustbench_5k")


def test_subset__of_a_part_of_the_classes(val: Path, chosen: str, tmp_path: Path) -> None:
    (tmp_path / "part.txt").write_text(f"{WNIDS[7]}\n{WNIDS[0]}\n")
    data = open_labelled(val, classes=str(tmp_path / "part.txt"), subset=chosen)
    assert data.labels.tolist() == [0, 0]
    assert [path.name for path in data.paths] == ["b.png", "a.png"]
    assert data.part is not None
    assert (data.part.class_ids.tolist(), data.part.num_source_classes, data.num_classes) == ([7, 0], 1000, 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ("stream.subset", "null", "robustbench_5k", "<class>/<file>", "mine.txt")),
        ("a.png", ("mine.txt", "'a.png'", "<class>/<file>")),
        (f"val/{WNIDS[2]}/a.png", (f"'val/{WNIDS[2]}/a.png'",)),
        ("../a.png", ("'../a.png'",)),
        (f"{WNIDS[2]}/", (f"'{WNIDS[2]}/'",)),
        (f"{WNIDS[2]}/a.png\n{WNIDS[7]}/a.png\n{WNIDS[2]}/a.png", ("mine.txt", f"'{WNIDS[2]}/a.png'", 1)),
        ("cat/a.png", ("stream.subset=mine-", "'cat'")),
    ],
)
def test_subset__wrong_lines_are_named(val: Path, chosen: str, text: str, named: tuple[object, ...]) -> None:
    Path(chosen).write_text(text)
    with raises_naming(ValueError, *named):
        clean(str(val), subset=chosen)


def test_subset__wrong_sources_are_named(val: Path, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises_naming(ValueError, "stream.subset", "robustbench-5k"):
        clean(str(val), subset="robustbench-5k")
    Path(chosen).write_bytes(b"\xff\xfe\x00")
    with raises_naming(ValueError, "stream.subset", "mine.txt"):
        clean(str(val), subset=chosen)
    np.savez(val.parent / "x.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.zeros(2, int))
    choices: list[dict[str, Any]] = [{"subset": "robustbench_5k"}, {"classes": "imagenet_r"}]
    for options in choices:
        ((key, value),) = options.items()
        with raises_naming(ValueError, f"stream.{key}={value}", "x.npz"):
            clean(str(val.parent / "x.npz"), **options)
    monkeypatch.setattr(listing, "find_spec", lambda name: None)
    with raises_naming(FileNotFoundError, "stream.subset=robustbench_5k"):
        read_subset("robustbench_5k")


def test_classes__in_an_order_of_the_users(tmp_path: Path) -> None:
    """Numbers as names of folders say nothing of which class is which: as text they are in another order."""
    for number in (2, 10, 1):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "data" / str(number) / "x.png")
    with raises_naming(ValueError, tmp_path / "data", "stream.classes", "stream=imagenet_v2"):
        open_labelled(tmp_path / "data")
    order = tmp_path / "order.txt"
    order.write_text("\n".join(map(str, range(12))))
    data = open_labelled(tmp_path / "data", classes=str(order))
    assert data.labels.tolist() == [1, 2, 10]
    assert data.load(torch.arange(3)).images[:, 0, 0, 0].tolist() == [1, 2, 10]
    assert (data.num_classes, data.part) == (12, None)
    order.write_text("10\n1\n2")  # not in ascending order, neither as numbers nor as text
    data = open_labelled(tmp_path / "data", classes=str(order))
    assert {path.parent.name: label for path, label in zip(data.paths, data.labels.tolist(), strict=True)} == {
        "10": 0,
        "1": 1,
        "2": 2,
    }
    order.write_text("2\n10")
    with raises_naming(ValueError, tmp_path / "data" / "1", "'1'", f"stream.classes={order}"):
        open_labelled(tmp_path / "data", classes=str(order))
    # Where both orders agree there is no question.
    (tmp_path / "data" / "10").rename(tmp_path / "data" / "3")
    assert open_labelled(tmp_path / "data").labels.tolist() == [0, 1, 2]


def test_classes__wrong_names_are_named(val: Path, tmp_path: Path) -> None:
    with raises_naming(ValueError, "stream.classes", "imagenet_r", "imagenet_a", "imagenet_v2"):
        open_labelled(val, classes="imagenet_v2")
    (tmp_path / "part.txt").write_text(f"{WNIDS[0]}\ncat\n")
    with raises_naming(ValueError, "part.txt", "'cat'"):
        open_labelled(val, classes=str(tmp_path / "part.txt"))
    with raises_naming(ValueError, "stream.num_classes=1000", "stream.classes=imagenet_r", 200):
        open_labelled(val, classes="imagenet_r", num_classes=1000)
    assert open_labelled(val, classes="imagenet_r", num_classes=200).num_classes == len(subset_classes("imagenet_r"))
