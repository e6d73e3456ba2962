from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tta.runs import BATCH_COLUMNS, RunDirectory, fingerprint, provenance

ROW = dict.fromkeys(BATCH_COLUMNS, 0.5)


CONFIG: dict[str, Any] = {
    "model": {"_target_": "m", "checkpoint": "here.pt"},
    "stream": {"_target_": "s", "root": "here", "workers": 2, "severity": 5},
    "scenario": {"reset": "domain"},
    "method": {"_target_": "t", "optimizer": {"lr": 0.1}},
    "optimizer": {"lr": 0.1},
    "seed": 0,
    "precision": "fp32",
    "device": "cpu",
    "runs_dir": "runs",
    "logger": {},
}


def test_fingerprint_is_of_what_determines_a_result_and_of_nothing_else() -> None:
    known = fingerprint(CONFIG, "w", "d")
    assert len(known) == 10
    stream, model = CONFIG["stream"], CONFIG["model"]
    for same in (
        dict(reversed(CONFIG.items())),
        {**CONFIG, "device": "cuda", "runs_dir": "there", "logger": {"wandb": {}}, "optimizer": {"lr": 0.2}},
        {**CONFIG, "stream": {**stream, "root": "there", "workers": 0}, "model": {**model, "checkpoint": "there.pt"}},
    ):
        assert fingerprint(same, "w", "d") == known
    others = {
        fingerprint(CONFIG, "other weights", "d"),
        fingerprint(CONFIG, "w", "other data"),
        fingerprint({**CONFIG, "seed": 1}, "w", "d"),
        fingerprint({**CONFIG, "precision": "bf16"}, "w", "d"),
        fingerprint({**CONFIG, "stream": {**stream, "severity": 4}}, "w", "d"),
        fingerprint({**CONFIG, "method": {**CONFIG["method"], "optimizer": {"lr": 0.2}}}, "w", "d"),
    }
    assert len(others - {known}) == 6


def test_rows_are_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as directory:
        directory.write("batches", ROW)
        directory.flush()
        with (tmp_path / "run" / "batches.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 1
        assert not directory.finished


def test_a_run_is_finished_only_by_its_summary(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory:
        directory.finish({"accuracy": 0.5})
    assert directory.finished
    assert json.loads(directory.summary_path.read_text()) == {"accuracy": 0.5}
    with directory:  # run again: unfinished from the first moment
        assert not directory.finished


def test_a_summary_that_cannot_be_written_leaves_none(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory, pytest.raises(TypeError):
        directory.finish({"accuracy": object()})
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["batches.csv", "classes.csv", "domains.csv"]


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"runs_dir: .* cannot be written .*choose another with runs_dir="):
        RunDirectory(tmp_path / "file" / "run").__enter__()


def test_provenance_names_versions_commit_and_command() -> None:
    found = provenance(["tta", "seed=1"])
    assert found["packages"]["torch"]
    assert found["packages"]["robustbench"]
    assert found["command"] == ["tta", "seed=1"]
    assert found["commit"] is None or len(found["commit"].partition("+")[0]) == 40
