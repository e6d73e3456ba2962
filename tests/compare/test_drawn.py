from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.written_runs import write_run
from tta.compare import Table, find_runs, tables
from tta.compare.drawn import Figure, Series, Style, figures, stretches_of, styles


def drawn(folder: Path) -> tuple[Table, dict[str, Figure]]:
    (table,) = tables(find_runs([folder]))
    return table, {figure.name: figure for figure in figures(table, styles([table]))}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "a", "source", 0, {"fog": 0.5, "snow": 0.7})
    for seed in (0, 1):
        for lr in (0.01, 0.1):
            write_run(tmp_path / f"{lr}-{seed}", "tent", seed, {"fog": 0.6 + lr + 0.1 * seed, "snow": 0.6}, lr=lr)
    return tmp_path


def test_styles__same_in_all_figures(runs: Path) -> None:
    _, found = drawn(runs)
    assert sorted(found) == ["", "classes", "cost", "domains", "lr"]
    for figure in found.values():
        looks = {series.label.partition(" (")[0]: series.style for series in figure.series}
        assert looks["tent + em"].color == "#0072B2"
        assert looks["source"].color == "#000000"


def test_lr_figure__only_where_a_method_has_several(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "bn_adapt", 0, {"fog": 0.5, "snow": 0.7})
    for method, lr in (("eta", 0.001), ("adadem", 0.005)):
        learns = {"_target_": f"m.{method}", "optimizer": {"_target_": "o.SGD", "lr": lr}}
        write_run(tmp_path / method, method, 0, {"fog": 0.6, "snow": 0.8}, method_config=learns)
    table, found = drawn(tmp_path)
    assert {row.lr for row in table.every_rate} == {None, 0.001, 0.005}
    assert not table.sweeps_rates
    assert sorted(found) == ["", "classes", "cost", "domains"]


def test_styles__differ_and_are_shared_by_tables(tmp_path: Path) -> None:
    for number in range(12):
        write_run(tmp_path / f"m{number}", f"m{number}", 0, {"fog": 0.05 * number})
    write_run(tmp_path / "other", "m3", 0, {"fog": 0.1}, weights="others")
    found = tables(find_runs([tmp_path]))
    looks = styles(found)
    assert len(set(looks.values())) == 12
    best = [looks[f"m{number}"].color for number in range(11, 5, -1)]
    assert len(set(best)) == 6
    assert {looks[f"m{number}"].dash for number in range(6, 12)} == {"solid"}


def test_online_curve__mean_of_seeds_with_gaps(runs: Path) -> None:
    _, found = drawn(runs)
    figure = found[""]
    tent = figure.series[1]
    assert tent.label == "tent + em (lr 0.1)"
    np.testing.assert_allclose(tent.y, [75, 75, np.nan, 60, 60, np.nan])
    np.testing.assert_allclose(np.asarray(tent.x, dtype=float), [50, 100, np.nan, 150, 200, np.nan])
    assert figure.stretches == [(100.0, "fog"), (200.0, "snow")]
    assert figure.note  # rates were chosen on the test stream


def test_domain_bars__means_and_deviations(runs: Path) -> None:
    _, found = drawn(runs)
    source, tent = found["domains"].series
    assert source.x == ["fog", "snow", "mean"]
    np.testing.assert_allclose(source.y, [50, 70, 60])
    assert source.error is None
    assert tent.error is not None
    np.testing.assert_allclose(tent.error, [7.07107, 0, 3.53553], atol=1e-4)
    assert "±" in found["domains"].ylabel
    for run in runs.glob("*-1"):
        (run / "summary.json").unlink()
    _, found = drawn(runs)
    assert "±" not in found["domains"].ylabel


def test_classes__shares_beside_labels(runs: Path) -> None:
    _, found = drawn(runs)
    labels, source, _ = found["classes"].series
    assert (labels.label, labels.kind) == ("labels", "bar")
    np.testing.assert_allclose(labels.y, [50, 50])
    np.testing.assert_allclose(source.y, [55, 45])


def test_classes__many_are_ranked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "source", 0, {"fog": 0.5})
    rows = "".join(f"fog,5,1,{c},1,{c % 3},0\n" for c in range(30))
    (folder / "classes.csv").write_text("domain,severity,visit,class,labels,predictions,correct\n" + rows)
    _, found = drawn(tmp_path)
    _, source = found["classes"].series
    np.testing.assert_allclose(source.y, 100 / 30 * np.repeat([2, 1, 0], 10))
    np.testing.assert_allclose(np.asarray(source.x, dtype=float), np.arange(1, 31))
    assert "rank" in found["classes"].xlabel


def test_cost__multiple_of_source_or_milliseconds(runs: Path) -> None:
    _, found = drawn(runs)
    source, tent = found["cost"].series
    assert (list(source.x), list(tent.x)) == ([1.0], [pytest.approx(2.0)])
    assert "cpu (2 threads)" in found["cost"].note
    (runs / "a" / "summary.json").unlink()
    _, found = drawn(runs)
    assert found["cost"].series[0].x == pytest.approx([20.0])
    assert "(ms)" in found["cost"].xlabel


def test_lr_figure__lines_and_a_level_of_the_baseline(runs: Path) -> None:
    _, found = drawn(runs)
    source, tent = found["lr"].series
    assert source.kind == "level"
    assert source.y == pytest.approx([60.0])
    np.testing.assert_allclose(np.asarray(tent.x, dtype=float), [0.01, 0.1])
    np.testing.assert_allclose(tent.y, [63, 67.5])
    assert found["lr"].ticks == [0.01, 0.1]


def test_many_methods__are_cut_and_counted(tmp_path: Path) -> None:
    for number in range(15):
        write_run(tmp_path / f"m{number}", f"m{number}", 0, {"fog": 0.5 + 0.01 * number})
    write_run(tmp_path / "s", "source", 0, {"fog": 0.1})
    _, found = drawn(tmp_path)
    assert [series.label for series in found[""].series] == ["source", *(f"m{number}" for number in range(4, 15))]
    assert "12 of 16" in found[""].note
    assert len(found["cost"].series) == 16


def test_online_curve__long_one_keeps_its_ends(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "source", 0, {"fog": 0.5})
    rows = "".join(f"{step},fog,5,1,1,{0.001 * step}\n" for step in range(500))
    (folder / "batches.csv").write_text("step,domain,severity,visit,n,domain_accuracy\n" + rows)
    _, found = drawn(tmp_path)
    (source,) = found[""].series
    x = np.asarray(source.x, dtype=float)
    assert len(x) == 61
    assert (x[0], x[-2]) == (1, 500)
    assert source.y[-2] == pytest.approx(49.9)


def test_stretches__domains_or_rounds() -> None:
    visits = [(name, 5, visit) for visit in range(1, 31) for name in ("fog", "snow")]
    places = pd.DataFrame(visits, columns=["domain", "severity", "visit"])
    end = pd.Series(100.0 * (places.index + 1))
    assert stretches_of(places, end) == [(200.0 * k, f"visit {k}") for k in range(1, 31)]
    assert [name for _, name in stretches_of(places[:4], end[:4])] == ["fog", "snow", "fog", "snow"]


def test_ticks__of_long_and_short_axes() -> None:
    def ticks(*x: float) -> list[float]:
        return Figure("", "", "", "", [Series("a", Style("#000"), np.array(x), np.array(x))]).ticks

    def rates(*x: float) -> list[float]:
        series = [Series("a", Style("#000"), np.array(x), np.array(x))]
        return Figure("", "", "", "", series, few_places=True).ticks

    assert ticks(1e-5, 1.0) == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert ticks(0.001, 0.02) == [0.001, 0.002, 0.005, 0.01, 0.02]
    assert ticks(1.0, 2.9) == [1.0, 1.5, 2.0, 3.0]
    assert ticks(6.0, 9.0) == [6.0, 7.0, 8.0, 9.0]
    assert rates(0.001, 0.0025, 0.005) == [0.001, 0.0025, 0.005]  # a rate is named, not the next round number
    assert rates(0.001, 0.00101, 0.005)[:2] == [0.001, 0.0015]  # no room for both
    assert ticks(1.2, 1.7) == [1.2, 1.4, 1.6, 1.8]


@given(st.floats(1e-8, 1e8), st.floats(1, 1e8))
@settings(max_examples=60)
def test_ticks__are_few_and_close_to_the_points(low: float, ratio: float) -> None:
    figure = Figure("", "", "", "", [Series("a", Style("#000"), np.zeros(2), np.array([low, low * ratio]))])
    assert 4 <= len(figure.ticks) <= 17
    assert figure.ticks == sorted(set(figure.ticks))
    assert figure.ticks[0] >= 0.9 * low
    assert figure.ticks[-1] <= 1.1 * low * ratio
