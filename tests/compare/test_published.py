from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers.errors import assert_names, raises_naming
from helpers.written_runs import write_run
from tta.compare import Table, find_runs, main, tables
from tta.compare.cells import notes, published_columns, published_domains, summary_columns
from tta.compare.page import page
from tta.compare.published import BUILT_IN, Published, names, read_published
from tta.compare.text import latex, markdown, wide_csv

SGD = {"_target_": "o.SGD", "lr": 0.01, "momentum": 0.0}
TABLE = """\
mine:
  source: a paper, table 1
  note: Plain SGD
  domains: [fog, snow]
  protocol: {weights: w, images: 100, severity: 5, batch_size: 50, reset: domain, order: shuffle,
    options: {optimizer._target_: o.SGD, optimizer.momentum: 0.0}}
  rows:
    source: {mean: 50.0}
    tent + em: {mean: 61.0, std: 0.1, domains: [60.0, 62.1]}
    eta + em: {mean: 70.0}
errors:
  source: others
  measure: error
  domains: [fog, snow]
  rows:
    tent + em (lr 0.01): {mean: 40.0, std: 0.5, domains: {snow: 41}}
    tent + em (lr 0.1): {mean: 30.0}
"""


def tent(**optimizer: Any) -> dict[str, Any]:
    return {"_target_": "m.tent", "objective": {"_target_": "o.EM"}, "optimizer": {**SGD, **optimizer}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tables.yaml").write_text(TABLE)
    return tmp_path / "tables.yaml"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for seed in (0, 1):
        write_run(folder / f"s{seed}", "source", seed, {"fog": 0.5, "snow": 0.52})
        write_run(folder / f"t{seed}", "tent", seed, {"fog": 0.6, "snow": 0.63}, method_config=tent())
        write_run(folder / f"l{seed}", "lame", seed, {"fog": 0.4, "snow": 0.4})
    return folder


def beside(runs: Path, published: Published) -> Table:
    (table,) = tables(find_runs([runs]), published=published)
    return table


def texts(table: Table) -> dict[str, dict[str, str]]:
    columns = published_columns(table)
    rows = [row.runs[0].method for row in table.rows]
    return {column.head: dict(zip(rows, (cell.text for cell in column.cells), strict=True)) for column in columns}


# The figures of this package.


def test_built_in__percentages_agree_with_their_means() -> None:
    assert len(names()) >= 8
    for name in names():
        published = read_published(name)
        assert len(published.domains) == 15
        for label, figures in published.rows.items():
            assert 0 < figures.mean < 100, (name, label)
            if len(figures.domains) == 15:
                assert fmean(figures.domains.values()) == pytest.approx(figures.mean, abs=0.1), (name, label)


def test_built_in__errors_become_accuracies() -> None:
    tent_ = read_published("cifar10_c_single_domain").rows["tent + em"]
    assert tent_.mean == pytest.approx(81.4)
    assert tent_.domains["brightness"] == pytest.approx(92.1)


def test_table__slip_in_one_figure_is_found(tmp_path: Path) -> None:
    text = BUILT_IN.read_text()
    assert text.count("31.8, 33.9, 33.0") == 1
    (tmp_path / "slip.yaml").write_text(text.replace("31.8, 33.9, 33.0", "31.8, 39.3, 33.0"))
    with raises_naming(ValueError, "slip.yaml", "table12_resnet50", "'tent + adadem'", "44.8", "45.13"):
        read_published(f"{tmp_path / 'slip.yaml'}:table12_resnet50")


def test_built_in__table_14_agrees_with_the_ablation() -> None:
    for scenario, number in (("single_domain", 12), ("continual", 13)):
        rates, ablation = read_published(f"table14_{scenario}").rows, read_published(f"table{number}_vit_b16").rows
        for objective in ("em", "adadem"):
            label = f"tent + {objective}"
            assert max(rates[name].mean for name in rates if name.startswith(f"{label} (")) == ablation[label].mean


# Beside runs.


def test_columns__means_and_differences(runs: Path, file: Path) -> None:
    table = beside(runs, read_published(f"{file}:mine"))
    assert texts(table) == {
        "published": {"source": "50.0", "tent + em": "61.0 ±0.10", "lame": ""},
        "Δ published": {"source": "+1.00", "tent + em": "+0.50", "lame": ""},
    }
    assert [column.head for column in summary_columns(table)][-2:] == ["published", "Δ published"]
    origin, without, missing = notes(table)[-3:]
    assert_names(origin, "a paper, table 1", "Plain SGD")
    assert_names(without, "lame")
    assert_names(missing, "eta + em")
    assert table.warnings == []


def test_columns__figures_by_domain(runs: Path, file: Path) -> None:
    columns = published_domains(beside(runs, read_published(f"{file}:mine")))
    head, *rows = [[column.head, *(cell.text for cell in column.cells)] for column in columns]
    assert all(text.startswith("tent + em (lr 0.01)") for text in head[1:])
    assert rows == [["fog", "60.0", "+0.0"], ["snow", "62.1", "+0.9"], ["mean", "61.0", "+0.5"]]


def test_match__by_learning_rate_where_there_is_one(runs: Path, file: Path) -> None:
    write_run(runs / "other", "tent", 0, {"fog": 0.6, "snow": 0.6}, lr=0.05, method_config=tent(lr=0.05))
    table = beside(runs, read_published(f"{file}:errors"))
    rows = {row.label: table.published.find(row) for row in table.rows if table.published}
    assert rows["tent + em (lr 0.05)"] is None
    found = rows["tent + em (lr 0.01)"]
    assert found is not None
    assert (found.mean, found.std, dict(found.domains)) == (60.0, 0.5, {"snow": 59.0})
    assert_names(notes(table)[-1], "tent + em (lr 0.1)")


def test_match__row_chosen_with_labels(tmp_path: Path, file: Path) -> None:
    marked = {"uses_labels": {"study": "s"}}
    write_run(tmp_path / "runs" / "a", "tent", 0, {"fog": 0.6, "snow": 0.6}, method_config=tent(), config=marked)
    assert texts(beside(tmp_path / "runs", read_published(f"{file}:mine")))["published"] == {"tent + em‡": "61.0 ±0.10"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weights": "v"}, ["weights", "v", "w"]),
        ({"n": 40}, ["images per domain", "40", "100"]),
        ({"stream": {"batch_size": 10}}, ["batch size", "10", "50"]),
        ({"scenario": {"reset": "never"}}, ["reset", "never", "domain"]),
        ({"scenario": {"order": "file"}}, ["order", "file", "shuffle"]),
        ({"method_config": tent(momentum=0.9)}, ["optimizer.momentum", "0.9", "0"]),
        ({"method_config": tent(_target_="o.Adam")}, ["optimizer._target_", "o.Adam", "o.SGD"]),
    ],
)
def test_protocol__another_is_said_to_be_one(
    tmp_path: Path, file: Path, changes: dict[str, Any], named: list[str]
) -> None:
    accuracies = {"fog": 0.6, "snow": 0.6}
    write_run(tmp_path / "runs" / "a", "tent", 0, accuracies, **{"method_config": tent(), **changes})
    table = beside(tmp_path / "runs", read_published(f"{file}:mine"))
    (told,) = table.warnings
    assert_names(told, "a paper, table 1", *named)
    assert table.published is not None
    assert len(table.published.departures(table.rows)) == 1


def test_protocol__other_domains_are_another(tmp_path: Path, file: Path) -> None:
    write_run(tmp_path / "runs" / "a", "tent", 0, {"fog": 0.6}, method_config=tent())
    (told,) = beside(tmp_path / "runs", read_published(f"{file}:mine")).warnings
    assert_names(told, "domains", "1", "2")


def test_formats__all_have_the_figures(runs: Path, file: Path) -> None:
    table = beside(runs, read_published(f"{file}:mine"))
    text = markdown(table)
    assert "| 61.0 ±0.10 | +0.50 |" in text
    assert "| 60.0 | 62.1 | 61.0 |" in text
    assert "| +0.0 | +0.9 | +0.5 |" in text
    assert r"61.0 $\pm$0.10 & +0.50 \\" in latex(table)
    assert r"$\Delta$ published" in latex(table)
    rows = {row["method"]: row for row in csv.DictReader(wide_csv(table).splitlines())}
    tent_ = {key: value for key, value in rows["tent + em"].items() if key.startswith("published ")}
    assert tent_ == {
        "published fog": "60", "published snow": "62.1", "published mean": "61", "published std": "0.1",
        "published row": "tent + em", "published source": "a paper, table 1", "published difference": "0.5",
    }  # fmt: skip
    assert math.isclose(float(rows["source"]["published difference"]), 1)
    assert rows["source"]["published fog"] == rows["lame"]["published mean"] == ""
    html = page([table], [[]], [])
    assert re.search(r'data-value="0\.5"[^>]*>\+0\.50<', html)
    assert "<td>62.1</td>" in html


def test_formats__without_figures_have_no_columns(runs: Path) -> None:
    (table,) = tables(find_runs([runs]))
    assert "published" not in markdown(table).lower() + wide_csv(table).lower() + latex(table).lower()


def test_command__shows_the_figures(runs: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs), "--published", f"{file}:mine"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Δ published" in said
    assert "61.0 ±0.10 +0.50" in said
    main([str(runs), "--published", "table12_resnet50"])
    said = " ".join(capsys.readouterr().out.split())
    assert_names(said, "resnet50.tv_in1k", "domains 2 (15")


# What is wrong with a file.


def test_name__unknown_lists_the_known(runs: Path, file: Path) -> None:
    with raises_naming(SystemExit, "--published", "'table99'", "table12_resnet50", "table13_resnet50"):
        main([str(runs), "--published", "table99"])
    for words, name in ((f"{file}:yours", "'yours'"), (str(file), "''")):
        with raises_naming(SystemExit, "--published", name, file, "mine, errors"):
            main([str(runs), "--published", words])
    with raises_naming(SystemExit, "--published", "nowhere.yaml"):
        main([str(runs), "--published", "nowhere.yaml:mine"])


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("rows.source.mean", 1500, ["'source'", "100", "1500"]),
        ("rows.source.mean", "much", ["'source'", "'much'"]),
        ("rows.source.sd", 1, ["'source'", "sd", "mean, std, domains"]),
        ("rows.source", {"std": 1}, ["'source'", "mean"]),
        ("rows.source", 50, ["'source'", "mean, std, domains", "50"]),
        ("rows.source.domains", [1], ["'source'", "1", "2"]),
        ("rows.source.domains", {"rain": 1}, ["'source'", "rain"]),
        ("rows.source.domains", [50, 51], ["'source'", "50.0", "50.50"]),
        ("measure", "loss", ["measure", "accuracy, error", "'loss'"]),
        ("domains", ["fog", "fog"], ["domains", "['fog', 'fog']"]),
        ("protocol.model", "x", ["protocol", "model", "weights", "normalization"]),
        ("rows", [], ["rows"]),
        ("rows", None, ["rows"]),
    ],
)
def test_table__wrong_part_is_named(file: Path, key: str, value: Any, named: list[str]) -> None:
    content = OmegaConf.load(file)
    OmegaConf.update(content, f"mine.{key}", value, merge=False)
    OmegaConf.save(content, file)
    with raises_naming(ValueError, "--published", file, "mine", *named):
        read_published(f"{file}:mine")


def test_file__without_tables_is_refused(tmp_path: Path) -> None:
    for text, named in (("a: [", "YAML"), ("a: 1\na: 2", "duplicate key a"), ("- a", "list")):
        (tmp_path / "bad.yaml").write_text(text)
        with raises_naming(ValueError, tmp_path / "bad.yaml", named):
            read_published(f"{tmp_path / 'bad.yaml'}:a")
