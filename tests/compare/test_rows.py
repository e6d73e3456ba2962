from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.errors import assert_names, raises_naming
from helpers.written_runs import write_run
from tta.compare import Table, find_runs, tables
from tta.compare.rows import told_apart

FOG = {"fog": 0.5, "snow": 0.7}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "a", "source", 0, {"fog": 0.5, "snow": 0.7})
    write_run(tmp_path / "b", "tent", 0, {"fog": 0.6, "snow": 0.6})
    write_run(tmp_path / "c", "tent", 1, {"fog": 0.8, "snow": 0.8})
    return tmp_path


def only(place: Path, **options: Any) -> Table:
    (table,) = tables(find_runs([place]), **options)
    return table


def test_row__mean_and_deviation_over_seeds(runs: Path) -> None:
    source, tent = only(runs).rows
    assert (source.label, tent.label) == ("source", "tent + em (lr 0.01)")
    assert tent.mean("fog") == pytest.approx(70)
    assert tent.mean() == pytest.approx(70)
    assert tent.std() == pytest.approx(14.1421, abs=1e-3)
    assert tent.std("fog") == pytest.approx(14.1421, abs=1e-3)
    assert source.std() is None
    assert tent.seconds == pytest.approx(2 * source.seconds) == 0.02


def test_row__seconds_leave_out_the_warm_up(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / str(seed), "source", seed, FOG)
    slow = tmp_path / "0" / "summary.json"
    summary = json.loads(slow.read_text())
    slow.write_text(json.dumps({**summary, "seconds": 50 * summary["seconds"]}))
    assert only(tmp_path).rows[0].seconds == pytest.approx(0.01)


def test_differences__of_the_seeds_in_common(runs: Path) -> None:
    table = only(runs)
    assert table.baseline is table.rows[0]
    found = table.differences["tent + em (lr 0.01)"]  # source has no seed 1
    assert found.mean == pytest.approx(0)
    assert (found.better, found.worse) == (1, 1)
    missing, fewer = table.warnings
    assert_names(missing, "source (1)")
    assert_names(fewer, "source", "tent + em (lr 0.01)")


def test_differences__paired_by_seed_among_others(tmp_path: Path) -> None:
    for seed, easy in ((0, 0.1), (1, 0.3), (2, 0.5)):
        write_run(tmp_path / f"source-{seed}", "source", seed, {"fog": easy, "snow": easy})
    for seed, gain in ((1, 0.02), (2, 0.04)):  # of seeds 0 and 1 it would be 0.2 and more
        easy = {1: 0.3, 2: 0.5}[seed]
        write_run(tmp_path / f"tent-{seed}", "tent", seed, {"fog": easy + gain, "snow": easy + gain})
    found = only(tmp_path).differences["tent + em (lr 0.01)"]
    assert found.mean == pytest.approx(3)
    assert found.std == pytest.approx(2**0.5)


def test_baseline__bn_adapt_then_source_or_by_name(runs: Path) -> None:
    assert only(runs).baseline.label == "source"  # type: ignore[union-attr]
    write_run(runs / "d", "bn_adapt", 0, FOG)
    assert only(runs).baseline.label == "bn_adapt"  # type: ignore[union-attr]
    for name in ("tent", "tent + em", "tent + em (lr 0.01)"):
        assert only(runs, baseline=name).baseline.label == "tent + em (lr 0.01)"  # type: ignore[union-attr]


def test_baseline__wrong_one_lists_the_right_ones(runs: Path) -> None:
    with raises_naming(ValueError, "'tnt'", "'source'", "'tent + em (lr 0.01)'"):
        only(runs, baseline="tnt")
    write_run(runs / "d", "tent", 0, FOG, lr=0.1)
    with raises_naming(ValueError, "'tent'", "'tent + em (lr 0.01)'", "'tent + em (lr 0.1)'"):
        only(runs, baseline="tent")


def test_baseline__none_means_no_differences(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "tent", 0, FOG)
    write_run(tmp_path / "b", "t3a", 0, FOG)
    table = only(tmp_path)
    assert table.baseline is None
    assert table.differences == {}
    (warning,) = table.warnings
    assert_names(warning, "--baseline")


def test_baseline__no_seed_in_common_is_told(runs: Path) -> None:
    write_run(runs / "d", "t3a", 2, FOG)
    table = only(runs)
    assert table.differences["t3a"].mean is None
    assert any("source" in warning and "t3a" in warning for warning in table.warnings)


def test_rows__ordered_by_best_mean_and_rate(runs: Path) -> None:
    write_run(runs / "d", "tent", 0, {"fog": 0.1, "snow": 0.1}, lr=0.1)
    write_run(runs / "e", "tent", 0, {"fog": 0.2, "snow": 0.1}, lr=0.001)
    write_run(runs / "f", "t3a", 0, {"fog": 0.9, "snow": 0.9})
    assert [row.label for row in only(runs).rows] == [
        "source", "tent + em (lr 0.001)", "tent + em (lr 0.01)", "tent + em (lr 0.1)", "t3a"
    ]  # fmt: skip


def test_best_lr__is_marked_as_chosen(runs: Path) -> None:
    for lr, accuracy in ((0.1, 0.75), (0.2, 0.2)):
        for seed in (0, 1):
            write_run(runs / f"{lr}-{seed}", "tent", seed, {"fog": accuracy, "snow": accuracy}, lr=lr)
    write_run(runs / "lucky", "tent", 0, {"fog": 1.0, "snow": 1.0}, lr=0.3)  # one seed is no rival of two
    table = only(runs, best_lr=True)
    assert [row.label for row in table.rows] == ["source", "tent + em (lr 0.1)†"]
    assert table.rows[1].chosen_of == 4
    assert sorted(row.lr or 0 for row in table.every_rate) == [0, 0.01, 0.1, 0.2, 0.3]
    assert only(runs, best_lr=True, baseline="tent + em (lr 0.1)").baseline is not None


OTHERS: dict[str, dict[str, Any]] = {
    "batch size": {"stream": {"batch_size": 10}},
    "weights": {"weights": "others"},
    "data": {"data": "others"},
    "normalization": {"normalization": {"mean": [0.5]}},
    "images per domain": {"n": 80},
    "reset": {"scenario": {"reset": "never"}},
    "scenario": {"scenario": {"order": "dirichlet"}},
    "stream": {"stream": {"seed": 3}},
}


def test_tables__incomparable_runs_are_apart(runs: Path) -> None:
    for key, changes in OTHERS.items():
        folder = write_run(runs / key, "tent", 2, FOG, **changes)
        found = tables(find_runs([runs]))
        assert [len(table.runs) for table in found] == [3, 1], key
        first, second = told_apart(found)
        assert first.startswith(f"table 1: {key} ")
        assert second.startswith(f"table 2: {key} ")
        assert first.count(";") == second.count(";") == 0, key  # nothing else differs
        shutil.rmtree(folder)


def test_tables__other_domains_or_order_are_apart(runs: Path) -> None:
    write_run(runs / "d", "tent", 2, {"fog": 0.5})
    write_run(runs / "e", "tent", 2, {"snow": 0.5, "fog": 0.5})
    found = tables(find_runs([runs]))
    assert len(found) == 3
    assert told_apart(found)[0].startswith("table 1: domains 2 (fog 5, snow 5)")
    assert any("domains 2 (snow 5, fog 5)" in text for text in told_apart(found))


def test_tables__paths_and_workers_are_no_difference(runs: Path) -> None:
    write_run(runs / "d", "tent", 2, FOG, stream={"root": "elsewhere", "workers": 4, "limit": 100})
    assert told_apart(tables(find_runs([runs]))) == []
    assert only(runs).rows[1].seeds == [0, 1, 2]


def test_warnings__name_what_differs_within_a_table(runs: Path) -> None:
    write_run(runs / "d", "tent", 0, FOG, config={"precision": "bf16"}, device="cuda", packages={"torch": "2.12.0"})
    write_run(runs / "e", "source", 1, FOG, skipped=["a.jpeg"])
    again = write_run(runs / "f", "tent", 1, {"fog": 1.0, "snow": 1.0}, date="2026-02-01T12:00:00+00:00")
    table = only(runs)
    (row,) = (row for row in table.rows if row.label == "tent + em (lr 0.01)")
    assert row.runs[1].path == again
    named = [
        ["tent + em (lr 0.01) seed 1"],  # there twice
        ["tent + em bf16 (lr 0.01) (1)"],  # a seed is missing
        ["bf16", "fp32"],
        ["torch", "2.11.0", "2.12.0"],
        ["source"],  # unreadable images
        ["cpu (2 threads)", "cuda"],
    ]
    assert len(table.warnings) == len(named)
    for warning, words in zip(table.warnings, named, strict=True):
        assert_names(warning, *words)


def test_warnings__none_for_a_complete_comparison(runs: Path) -> None:
    write_run(runs / "d", "source", 1, FOG)
    assert only(runs).warnings == []
