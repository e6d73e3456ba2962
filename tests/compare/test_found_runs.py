from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.errors import assert_names, raises_naming
from helpers.written_runs import write_run, write_visits
from tta.compare import Run, find_runs
from tta.compare.reading import accuracies, find

FOG = {"fog": 0.5, "snow": 0.7}


def labels(place: Path) -> list[str]:
    return sorted({run.label for run in find_runs([place])})


def tent(folder: Path, seed: int = 0, lr: float = 0.1, **options: object) -> None:
    optimizer = {"_target_": "torch.optim.SGD", "lr": lr, "momentum": 0.9}
    config = {"_target_": "x.Tent", "objective": {"_target_": "o.EM"}, "optimizer": optimizer, **options}
    write_run(folder, "tent", seed, FOG, method_config=config)


def test_find_runs__at_any_depth_and_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "source", 0, FOG)
    write_run(tmp_path / "sub" / "sub" / "b", "tent", 0, FOG)
    write_run(tmp_path / ".hidden" / "c", "tent", 1, FOG)
    found = find_runs([tmp_path, tmp_path / "sub", tmp_path / "a"])
    assert [run.path.name for run in found] == ["a", "b"]
    assert found[0].label == "source"
    assert found[1].label == "tent + em (lr 0.01)"


def test_find__files_of_a_logger_are_no_run(tmp_path: Path) -> None:
    files = write_run(tmp_path / "a", "source", 0, FOG) / "wandb" / "run-1" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text("")
    assert find([tmp_path]).unfinished == []


def test_find__unfinished_and_unreadable_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "source", 0, FOG)
    (write_run(tmp_path / "b", "tent", 0, FOG) / "summary.json").unlink()
    (write_run(tmp_path / "c", "tent", 1, FOG) / "summary.json").write_text('{"name": "c", "acc')
    (write_run(tmp_path / "d", "tent", 2, FOG) / "summary.json").write_text('{"name": "of another program"}')
    (write_run(tmp_path / "e", "tent", 3, FOG) / "summary.json").write_text("[1, 2]")
    write_run(tmp_path / "f", "tent", 4, FOG, packages={})
    write_run(tmp_path / "g", "tent", 4, FOG, lr="high")
    found = find([tmp_path])
    assert [run.path.name for run in found.runs] == ["a"]
    assert [path.name for path in found.unfinished] == ["b"]
    reasons = {file.parent.name: reason for file, reason in found.unreadable.items()}
    assert sorted(reasons) == ["c", "d", "e", "f", "g"]
    assert_names(reasons["c"], "JSON", "Unterminated string")
    assert "JSON" not in reasons["d"]


def test_find__nothing_finished_names_what_is_there(tmp_path: Path) -> None:
    with raises_naming(FileNotFoundError, tmp_path / "nowhere"):
        find([tmp_path / "nowhere"])
    with raises_naming(FileNotFoundError, "summary.json", tmp_path):
        find([tmp_path])
    (write_run(tmp_path / "begun", "tent", 0, FOG) / "summary.json").unlink()
    with raises_naming(FileNotFoundError, "unfinished", tmp_path / "begun"):
        find([tmp_path])
    (write_run(tmp_path / "broken", "tent", 0, FOG) / "summary.json").write_text("")
    with raises_naming(FileNotFoundError, tmp_path / "broken/summary.json", "JSON"):
        find([tmp_path])


def test_label__tells_other_options_apart(tmp_path: Path) -> None:
    tent(tmp_path / "a", margin=0.4)
    tent(tmp_path / "b", margin=0.5)
    assert labels(tmp_path) == ["tent + em (lr 0.1) margin=0.4", "tent + em (lr 0.1) margin=0.5"]
    tent(tmp_path / "c", margin=0.4, window=64)  # others are from before there was a window
    assert labels(tmp_path) == [
        "tent + em (lr 0.1) margin=0.4",
        "tent + em (lr 0.1) margin=0.4 window=64",
        "tent + em (lr 0.1) margin=0.5",
    ]


def test_label__options_of_one_class_alone_are_silent(tmp_path: Path) -> None:
    tent(tmp_path / "a")
    tent(tmp_path / "b", optimizer={"_target_": "torch.optim.Adam", "lr": 0.1, "betas": [0.9, 0.999]})
    assert labels(tmp_path) == ["tent + em (lr 0.1) optimizer=Adam", "tent + em (lr 0.1) optimizer=SGD"]
    tent(tmp_path / "c", optimizer={"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.0})
    assert labels(tmp_path) == [
        "tent + em (lr 0.1) optimizer=Adam",
        "tent + em (lr 0.1) optimizer=SGD optimizer.momentum=0.0",
        "tent + em (lr 0.1) optimizer=SGD optimizer.momentum=0.9",
    ]


def test_label__names_a_part_that_one_run_lacks(tmp_path: Path) -> None:
    tent(tmp_path / "a")
    tent(tmp_path / "b", adapt={"_target_": "tta.methods.ParameterChoice", "layers": "norm"})
    assert labels(tmp_path) == ["tent + em (lr 0.1)", "tent + em (lr 0.1) adapt=ParameterChoice"]


def test_label__run_seed_and_paths_tell_nothing_apart(tmp_path: Path) -> None:
    for seed in range(3):
        config = {"_target_": "x", "seed": seed, "fisher": {"root": f"/data/{seed}"}}
        write_run(tmp_path / f"r{seed}", "eata", seed, FOG, method_config=config)
    assert labels(tmp_path) == ["eata"]
    config = {"_target_": "x", "seed": 0, "fisher": {"root": "/data/0"}}
    write_run(tmp_path / "other", "eata", 0, FOG, method_config=config, method_data="fisher-2")
    assert labels(tmp_path) == ["eata data=fisher-2", "eata data=null"]


def test_label__own_class_goes_by_its_name(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "tent", 0, FOG, choices={}, method_config={"_target_": "mine.deep.Sure"})
    (run,) = find_runs([tmp_path])
    assert run.label == "Sure"
    assert run.title == "custom, custom (reset=domain, order=shuffle), custom"


def test_label__has_the_precision(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "tent", 0, FOG, config={"precision": "bf16"})
    assert labels(tmp_path) == ["tent + em bf16 (lr 0.01)"]


def test_accuracies__by_visit_and_severity(tmp_path: Path) -> None:
    rounds = [("fog", 5, 1, 0.8), ("snow", 5, 1, 0.6), ("fog", 5, 2, 0.4), ("snow", 5, 2, 0.1)]
    (run,) = find_runs([write_visits(tmp_path / "a", rounds)])
    assert run.accuracies == pytest.approx({"fog": 60, "snow": 35, "visit 1": 70, "visit 2": 25, "mean": 47.5})
    levels = [(1, 1, 0.9), (2, 1, 0.7), (1, 2, 0.5)]
    gradual = [("fog", s, v, a) for s, v, a in levels] + [("snow", s, v, a / 2) for s, v, a in levels]
    (run,) = find_runs([write_visits(tmp_path / "b", gradual)])
    assert run.accuracies == pytest.approx(
        {"fog": 70, "snow": 35, "severity 1": 52.5, "severity 2": 52.5, "mean": 52.5}
    )


def test_accuracies__of_summaries_without_visits(tmp_path: Path) -> None:
    summary = json.loads((write_run(tmp_path / "a", "tent", 0, FOG) / "summary.json").read_text())
    for visit in summary["domains"]:
        del visit["visit"]
    assert accuracies(summary) == pytest.approx({"fog": 50, "snow": 70, "mean": 60})
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary))
    (run,) = find_runs([tmp_path])
    assert isinstance(run, Run)


def test_import__needs_no_heavy_library() -> None:
    heavy = "('torch', 'pandas', 'matplotlib', 'plotly', 'scipy')"
    code = f"import sys, tta.compare, tta.compare.text; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
