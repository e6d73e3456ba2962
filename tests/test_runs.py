from __future__ import annotations

import copy
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers.compositions import composed
from tta.cli import CONFIGS
from tta.runs import BATCH_COLUMNS, NEUTRAL, RunDirectory, fingerprint, provenance

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


SAY_NOTHING_OF_THE_RESULT = {
    "model.checkpoint",  # the content of the file has its place in the weights' name
    "model.model_dir",
    "stream.root",  # what is there has its place in the stream's digest
    "stream.source",
    "stream.cache",
    "stream.download",
    "stream.workers",
    "method.fisher.root",  # likewise in the method's
}
"""Keys of the configurations, written out here, that may change without another result."""


def leaves(node: Any, name: str) -> Iterator[str]:
    """Name what can be set below a part of a configuration."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}")
    else:
        yield name


def changed(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Set a key to something that it is not."""
    *path, last = name.split(".")
    new = copy.deepcopy(config)
    node = new
    for key in path:
        node = node[key]
    node[last] = [node[last], "another"]
    return new


@pytest.mark.parametrize("group", ["method", "objective", "optimizer", "scenario", "stream", "model"])
def test_whatever_can_be_chosen_has_its_part_in_the_fingerprint(group: str) -> None:
    options = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    for option in options:
        config: dict[str, Any] = OmegaConf.to_container(composed(f"{group}={option}"), resolve=True)  # type: ignore[assignment]
        known = fingerprint(config, "w", "d")
        names = ["seed", "precision"]
        for part in ("model", "stream", "scenario", "method"):
            names += leaves(config[part], part)
        same = {name for name in names if fingerprint(changed(config, name), "w", "d") == known}
        assert same == SAY_NOTHING_OF_THE_RESULT & set(names), option
    assert len(options) > 1


@pytest.mark.parametrize("key", sorted(NEUTRAL))
def test_a_key_that_is_younger_than_results_counts_unless_it_changes_nothing(key: str) -> None:
    part, name = key.split(".")
    at_rest = {"delta": None, "imbalance_ratio": None, "mix": False, "rounds": 1, "long_tailed": None, "classes": None,
               "subset": None, "on_device": False, "part": "all", "share": None, "share_seed": 0}[name]  # fmt: skip
    known = fingerprint(CONFIG, "w", "d")
    with_key = {value: fingerprint({**CONFIG, part: {**CONFIG[part], name: value}}, "w", "d")
                for value in (at_rest, 7, 0.3)}  # fmt: skip
    assert with_key[at_rest] == known
    assert len(set(with_key.values())) == 3


def test_all_data_of_a_run_have_their_part_in_the_fingerprint() -> None:
    names = [("d",), ("d", "clean images"), ("d", "other clean images"), ("d", "clean images", "more"), ()]
    assert len({fingerprint(CONFIG, "w", *data) for data in names}) == len(names)
    assert fingerprint(CONFIG, "w", "d", "") == fingerprint(CONFIG, "w", "d")


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


def test_a_summary_that_is_cut_off_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the disk is full, or the process killed, in the middle of it."""
    directory = RunDirectory(tmp_path / "run")
    write = Path.write_text

    def half(self: Path, text: str) -> int:
        write(self, text[: len(text) // 2])
        assert not directory.finished
        raise OSError("No space left on device")

    with directory:
        monkeypatch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="No space left on device"):
            directory.finish({"accuracy": 0.5})
    assert not directory.finished


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
