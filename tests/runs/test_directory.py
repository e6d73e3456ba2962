"""A run is known by what determines its result, and looks finished only when it is."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from helpers.compositions import composed
from helpers.own_parts import WATCH, Watching, own_words
from helpers.sweep_files import left, rows
from tta.cli import CONFIGS
from tta.runs.fingerprint import MOVED_TARGETS, fingerprint

Command = Callable[..., Any]

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
"""Keys of the configurations that may change without another result."""

YOUNGER_THAN_RESULTS: dict[str, Any] = {
    "scenario.delta": None,
    "scenario.imbalance_ratio": None,
    "scenario.mix": False,
    "scenario.rounds": 1,
    "scenario.long_tailed": None,
    "scenario.part": "all",
    "scenario.share": None,
    "scenario.share_seed": 0,
    "stream.classes": None,
    "stream.subset": None,
    "stream.on_device": False,
}
"""Keys at the value that older runs, which did not have them, were made with."""


def config() -> dict[str, Any]:
    """All that a run of Tent on the demo stream is told."""
    return OmegaConf.to_container(composed("method=tent"), resolve=True)  # type: ignore[return-value]


def leaves(node: Any, name: str) -> Iterator[str]:
    """Name what can be set below a part of a configuration."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}")
    else:
        yield name


def changed(node: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Set a key."""
    *path, last = name.split(".")
    new = copy.deepcopy(node)
    inner = new
    for key in path:
        inner = inner[key]
    inner[last] = value
    return new


def test_fingerprint__counts_every_option_of_the_yamls() -> None:
    """Nested objectives, optimizers and choices of parameters too; but no places of files."""
    seen = set()
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        group, option = path.parent.name, OmegaConf.to_container(OmegaConf.load(path))
        if group not in ("method", "objective", "optimizer", "scenario", "stream", "model", "adapt"):
            continue
        assert isinstance(option, dict)
        option.pop("defaults", None)
        node = config()
        if group in ("objective", "optimizer", "adapt"):
            node["method"][group] = option
        else:
            node[group] |= option
        known = fingerprint(node, "w", "d")
        names = ["seed", "precision"]
        names += [name for part in ("model", "stream", "scenario", "method") for name in leaves(node[part], part)]
        same = {name for name in names if fingerprint(changed(node, name, ["another"]), "w", "d") == known}
        assert same == SAY_NOTHING_OF_THE_RESULT & set(names), path
        seen |= set(names)
    assert {"method.optimizer.lr", "method.objective.momentum", "method.adapt._target_"} <= seen
    assert seen >= SAY_NOTHING_OF_THE_RESULT


def test_fingerprint__counts_nothing_else() -> None:
    node = config()
    known = fingerprint(node, "w", "d")
    for key, value in (("device", "cuda"), ("runs_dir", "there"), ("logger", {"wandb": {}}), ("optimizer.lr", 7)):
        assert fingerprint(changed(node, key, value), "w", "d") == known, key
    assert fingerprint(dict(reversed(node.items())), "w", "d") == known
    assert fingerprint(node, "w", "d", "") == known
    others = [
        ("other", "d"),
        ("w", "other"),
        ("w", "d", "clean"),
        ("w", "d", "other"),
        ("w", "d", "clean", "more"),
        ("w",),
    ]
    assert len({known, *(fingerprint(node, weights, *data) for weights, *data in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("group", "now", "before"),
    [
        ("model", "tta.models.timm_backbone", "tta.backbones.timm_backbone"),
        ("model", "tta.models.demo.backbone", "tta.demo.backbone"),
        ("stream", "tta.streams.datasets.cifar.cifar_c", "tta.streams.cifar.cifar_c"),
        ("stream", "tta.streams.datasets.source_images.clean_images", "tta.streams.clean.clean_images"),
    ],
)
def test_fingerprint__finds_runs_older_than_a_move(group: str, now: str, before: str) -> None:
    found = {fingerprint(changed(config(), f"{group}._target_", target), "w", "d") for target in (now, before)}
    assert len(found) == 1


def test_fingerprint__moved_targets_exist() -> None:
    targets = {t for p in CONFIGS.glob("*/*.yaml") for t in re.findall(r"_target_: (tta\S+)", p.read_text())}
    assert all(any(target.startswith(new) for target in targets) for new in MOVED_TARGETS)


def test_fingerprint__finds_runs_older_than_a_key() -> None:
    node = config()
    for key, value in YOUNGER_THAN_RESULTS.items():
        part, name = key.split(".")
        without = copy.deepcopy(node)
        without[part].pop(name, None)
        known = fingerprint(without, "w", "d")
        found = [fingerprint(changed(node, key, this), "w", "d") for this in (value, 7, 0.3)]
        assert found[0] == known, key
        assert len(set(found)) == 3, key


def test_run__is_made_again_for_another_result(tta_command: Command, tmp_path: Path) -> None:
    """And for nothing else."""
    arguments = own_words(tmp_path / "own", "method=tent")
    tta_command(*arguments)
    (first,) = (tmp_path / "runs").glob("own*")
    assert re.fullmatch("[0-9a-f]{10}", first.name.rpartition("-")[2])
    for word in ("checkpoint.every=1", "device=auto", "logger=default"):
        tta_command(*(old for old in arguments if old.partition("=")[0] != word.partition("=")[0]), word)
        assert [*(tmp_path / "runs").glob("own*")] == [first], word
    changes = ["optimizer.lr=0.1", "method.steps=2", "objective=adadem", "scenario=continual", "seed=1"]
    changes += ["precision=bf16", "stream.images=22"]
    for number, word in enumerate(changes, 2):
        tta_command(*arguments, word)
        assert len([*(tmp_path / "runs").glob("own*")]) == number, word
    tta_command(*arguments, "objective=adadem", "objective.momentum=0.2")
    assert len([*(tmp_path / "runs").glob("own*")]) == len(changes) + 2


def test_run__ignores_what_its_method_ignores(tta_command: Command, tmp_path: Path) -> None:
    arguments = own_words(tmp_path / "own", "method=watching")
    for more in ((), ("objective=adadem", "optimizer.lr=0.1")):
        tta_command(*arguments, *more)
    assert len([*(tmp_path / "runs").glob("own*")]) == 1
    assert WATCH.calls == 6


def test_run__looks_finished_only_at_its_end(
    tta_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is run once more; its rows are on disk as soon as they are there."""
    arguments = own_words(tmp_path / "own", "method=watching", "force=true")
    step, looks = Watching.step, []

    def looking(self: Watching, images: torch.Tensor) -> torch.Tensor:
        (run,) = (tmp_path / "runs").glob("own*")
        assert not (run / "summary.json").exists()
        looks.append((WATCH.calls, len(rows(run / "batches.csv"))))
        return step(self, images)

    monkeypatch.setattr(Watching, "step", looking)
    for _ in range(2):
        WATCH.clear()
        tta_command(*arguments)
        assert list((tmp_path / "runs").glob("own*/summary.json"))
    assert looks == [(call, call) for call in range(6)] * 2


def test_run__that_is_finished_is_tidied(tta_command: Command, tmp_path: Path) -> None:
    """Of what a process left that was killed after it had written the summary."""
    arguments = own_words(tmp_path / "own", "method=watching")
    tta_command(*arguments)
    expected = left(tmp_path / "runs")
    (run,) = (tmp_path / "runs").glob("own*")
    for name in ("checkpoint", ".checkpoint-abc", ".summary.json-abc.json"):
        (run / name).write_bytes(b"")
    tta_command(*arguments)
    assert left(tmp_path / "runs") == expected
    assert WATCH.calls == 6


def test_run__keeps_what_it_was_made_by(tta_command: Command, tmp_path: Path) -> None:
    arguments = own_words(tmp_path / "own", "method=tent", "seed=3")
    tta_command(*arguments)
    (run,) = (tmp_path / "runs").glob("own*")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["command"][1:] == arguments
    assert summary["config"]["seed"] == 3
    assert OmegaConf.to_container(OmegaConf.load(run / "config.yaml")) == summary["config"]
    assert summary["choices"]["method"] == "tent"
    assert summary["weights"] == "small"
    assert summary["normalization"] is None
    assert len(summary["data"]) == 12
    assert summary["reset"] == "domain"
    assert summary["device"].startswith("cpu")
    assert summary["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert summary["packages"]["robustbench"]
    assert summary["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", summary["commit"])
