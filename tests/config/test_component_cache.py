"""What the jobs of a sweep share: made once, and nothing in their files tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm

from helpers.errors import assert_names
from helpers.own_parts import WATCH, own_words
from helpers.sweep_files import left, make_files, words

Command = Callable[..., Any]


def test_sweep__sharing_parts_changes_no_file(tta_command: Command, tmp_path: Path) -> None:
    """RoTTA puts other layers into its copy of the backbone, and the methods draw from generators."""
    arguments = own_words(tmp_path / "own", "optimizer.lr=0.1", "seed=1")
    for method in ("rotta", "tent"):
        tta_command(*arguments, f"method={method}")
    assert WATCH.made == {"network": 2, "stream": 2}
    alone = left(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "alone")
    WATCH.clear()
    tta_command("-m", *arguments, "method=rotta,tent")
    assert WATCH.made == {"network": 1, "stream": 1}
    assert left(tmp_path / "runs") == alone


def test_sweep__makes_other_streams_anew(tta_command: Command, tmp_path: Path) -> None:
    """It keeps few: of three by turns, the one that comes next has gone."""
    arguments = own_words(tmp_path / "own", "method=watching", "stream.domains=1")
    tta_command("-m", *arguments, "seed=0,1", "stream.batch_size=7,8,9")
    assert WATCH.made == {"network": 1, "stream": 6}


def test_sweep__draws_random_weights_for_each_seed(
    files: Path, tmp_path: Path, tta_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    create = timm.create_model

    def counted(name: str, **options: Any) -> Any:
        made.append(name)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", counted)
    arguments = [word for word in words(files) if not word.startswith(("model.checkpoint", "stream.corruptions"))]
    arguments += ["stream.corruptions=fog", "model.pretrained=false", "model.num_classes=10"]
    with pytest.warns(UserWarning, match="test_efficientnet") as told:
        tta_command("-m", *arguments, "method=source,bn_adapt", "seed=0,1")
    for warning in told:
        assert_names(str(warning.message), "test_efficientnet", "model.pretrained=false")
    assert len(made) == 2  # one for each seed, for both methods
    tables = [content for name, content in left(tmp_path / "runs").items() if "source" in name and "classes" in name]
    assert len(tables) == 2
    assert tables[0] != tables[1]


def test_sweep__restricts_classes_for_one_stream(tta_command: Command, tmp_path: Path) -> None:
    """A stream with some of the classes, and then one with all of them, each as when run alone."""
    arguments = own_words(tmp_path / "own", "method=tent")
    for part in ("true", "false"):
        tta_command(*arguments, f"stream.part={part}")
    alone = left(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "alone")
    tta_command("-m", *arguments, "stream.part=true,false")
    assert left(tmp_path / "runs") == alone
    assert {len(content) for name, content in alone.items() if name.endswith("classes.csv")} == {2 * 3, 2 * 5}


def test_sweep__reads_files_anew(tmp_path: Path, tta_command: Command) -> None:
    """Files that have changed since another sweep of the same process."""
    (tmp_path / "own").mkdir()
    make_files(tmp_path / "own", corruptions=("fog",))
    arguments = [word for word in words(tmp_path / "own") if not word.startswith("stream.corruptions")]
    for value in (0, 1):
        labels = np.load(tmp_path / "own" / "CIFAR-10-C" / "labels.npy")
        np.save(tmp_path / "own" / "CIFAR-10-C" / "labels.npy", (labels + value) % 10)
        tta_command("-m", *arguments, "stream.corruptions=fog", "method=source", "seed=0")
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 2
