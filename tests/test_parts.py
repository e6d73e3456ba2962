"""What the jobs of a sweep share: made once, and nothing in their files tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.sweep_files import left, make_files, words
from tta import composed
from tta.parts import KEPT, Shared, shared_in
from tta.streams import Stream
from tta.streams.classes import Part

Command = Callable[..., Any]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part is made."""
    counts: Counter[str] = Counter()
    instantiate = composed.instantiate

    def counted(node: Any, **kwargs: Any) -> Any:
        counts[node.get("_target_", "").rpartition(".")[2]] += 1
        return instantiate(node, **kwargs)

    monkeypatch.setattr(composed, "instantiate", counted)
    return counts


def get(shared: Shared, key: str, make: Callable[[], Any]) -> Any:
    return shared.get("backbone", (key,), make, lambda _: key)


def test_parts_are_made_once_and_the_oldest_goes_first() -> None:
    shared = Shared()
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    assert KEPT == 2
    assert [get(shared, key, make) for key in "aababcbca"] == [0, 0, 1, 0, 1, 2, 1, 2, 3]
    # b and c were there when a came again; c was wanted last, and b has gone.
    assert get(shared, "c", make) == 2
    assert get(shared, "b", make) == 4


def test_kinds_do_not_take_room_from_each_other() -> None:
    shared = Shared()
    first = get(shared, "a", object)
    for _ in range(KEPT + 1):
        key = object()
        shared.get("stream", (key,), object, lambda _, key=key: key)  # type: ignore[misc]
    assert get(shared, "a", object) is first


def test_another_sweep_shares_nothing_with_the_one_before() -> None:
    assert shared_in("one") is shared_in("one")
    assert shared_in("one") is not shared_in("two")


def test_a_sweep_makes_its_backbone_and_stream_once_and_leaves_what_single_runs_leave(
    files: Path, tmp_path: Path, tta_command: Command, made: Counter[str]
) -> None:
    for method in ("source", "tent", "rotta"):
        for seed in (0, 1):
            tta_command(*words(files), f"method={method}", f"seed={seed}", "optimizer.lr=0.1")
    assert made["timm_backbone"] == made["cifar_c"] == 6
    alone = left(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "alone")
    made.clear()
    tta_command("-m", *words(files), "method=source,tent,rotta", "seed=0,1", "optimizer.lr=0.1")
    assert made["timm_backbone"] == made["cifar_c"] == 1
    assert made["Tent"] == made["RoTTA"] == made["Source"] == 2
    assert left(tmp_path / "runs") == alone


def test_jobs_that_differ_in_model_or_stream_get_their_own(
    files: Path, tmp_path: Path, tta_command: Command, made: Counter[str]
) -> None:
    sizes = [word for word in words(files) if not word.startswith("stream.batch_size")]
    tta_command("-m", *sizes, "method=source", "stream.batch_size=10,20", "seed=0,1")
    assert (made["timm_backbone"], made["cifar_c"]) == (1, 2)


def test_random_weights_are_drawn_anew_for_another_seed(
    files: Path, tmp_path: Path, tta_command: Command, made: Counter[str]
) -> None:
    random = [word for word in words(files) if not word.startswith("model.checkpoint")]
    random += ["model.pretrained=false", "model.num_classes=10"]
    with pytest.warns(UserWarning, match="random weights"):
        tta_command("-m", *random, "method=source,bn_adapt", "seed=0,1")
    assert made["timm_backbone"] == 2  # one for each seed, for both methods
    runs = left(tmp_path / "runs")
    accuracies = {name: runs[name] for name in runs if name.endswith("domains.csv") and "source" in name}
    assert len({str(rows) for rows in accuracies.values()}) == 2


def test_a_backbone_restricted_for_one_stream_is_whole_for_the_next(
    files: Path, tmp_path: Path, tta_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams with all classes and with a part of them, one after another, each as when run alone."""
    init = Stream.__init__

    def some_classes(self: Stream, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        if self.limit == 20:  # the images of this stream belong to some classes
            for number, domain in enumerate(self.domains):
                chosen = domain.labels.clamp(max=3)
                self.domains[number] = type(domain)(domain.name, domain.severity, chosen, domain.load)
            self.num_classes, self.classes = 4, Part(torch.tensor([7, 1, 5, 2]), 10)

    monkeypatch.setattr(Stream, "__init__", some_classes)
    for limit in ("20", "40"):
        tta_command(*words(files), "method=tent", f"stream.limit={limit}", "runs_dir=alone")
    tta_command("-m", *words(files), "method=tent", "stream.limit=20,40", "seed=0", "runs_dir=sweep")
    alone, sweep = left(tmp_path / "alone"), left(tmp_path / "sweep")
    tables = [name for name in alone if name.endswith(".csv")]
    assert len(tables) == 6
    assert {name: alone[name] for name in tables} == {name: sweep[name] for name in tables}
    assert {len(alone[name]) for name in tables if name.endswith("classes.csv")} == {12, 30}


def test_files_that_change_between_two_sweeps_are_read_anew(
    tmp_path: Path, tta_command: Command, made: Counter[str]
) -> None:
    (tmp_path / "own").mkdir()
    make_files(tmp_path / "own")
    for value in (0, 1):
        labels = np.load(tmp_path / "own" / "CIFAR-10-C" / "labels.npy")
        np.save(tmp_path / "own" / "CIFAR-10-C" / "labels.npy", (labels + value) % 10)
        tta_command("-m", *words(tmp_path / "own"), "method=source", "seed=0,1")
    assert made["cifar_c"] == 2
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 4
