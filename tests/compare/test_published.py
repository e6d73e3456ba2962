from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from omegaconf import OmegaConf

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


@pytest.mark.parametrize("name", names())
def test_figures_are_percentages_whose_means_agree_with_their_domains(name: str) -> None:
    published = read_published(name)
    assert len(published.domains) == 15
    for figures in published.rows.values():
        assert 0 < figures.mean < 100
        if len(figures.domains) == 15:
            assert fmean(figures.domains.values()) == pytest.approx(figures.mean, abs=0.1)


def test_errors_become_accuracies() -> None:
    tent_ = read_published("cifar10_c_single_domain").rows["tent + em"]
    assert tent_.mean == pytest.approx(81.4)
    assert tent_.domains["brightness"] == pytest.approx(92.1)


def test_a_slip_in_one_figure_is_found(tmp_path: Path) -> None:
    text = BUILT_IN.read_text()
    assert text.count("31.8, 33.9, 33.0") == 1
    (tmp_path / "slip.yaml").write_text(text.replace("31.8, 33.9, 33.0", "31.8, 39.3, 33.0"))
    with pytest.raises(
        ValueError, match=r"'tent \+ adadem' has a mean of 44.8, that of its 15 domains is 45.13: one of"
    ):
        read_published(f"{tmp_path / 'slip.yaml'}:table12_resnet50")


def test_the_best_rates_of_table_14_are_in_the_ablation() -> None:
    for scenario, number in (("single_domain", 12), ("continual", 13)):
        rates, ablation = read_published(f"table14_{scenario}").rows, read_published(f"table{number}_vit_b16").rows
        for objective in ("em", "adadem"):
            label = f"tent + {objective}"
            assert max(rates[name].mean for name in rates if name.startswith(f"{label} (")) == ablation[label].mean


# Beside runs.


def test_means_and_differences(runs: Path, file: Path) -> None:
    table = beside(runs, read_published(f"{file}:mine"))
    assert texts(table) == {
        "published": {"source": "50.0", "tent + em": "61.0 ±0.10", "lame": ""},
        "Δ published": {"source": "+1.00", "tent + em": "+0.50", "lame": ""},
    }
    assert [column.head for column in summary_columns(table)][-2:] == ["published", "Δ published"]
    said = notes(table)
    assert "Published: a paper, table 1; Δ published is ours less that. Plain SGD." in said
    assert "No published figure for lame." in said
    assert "Published, but not here: eta + em." in said
    assert table.warnings == []


def test_figures_by_domain(runs: Path, file: Path) -> None:
    columns = published_domains(beside(runs, read_published(f"{file}:mine")))
    assert [[column.head, *(cell.text for cell in column.cells)] for column in columns] == [
        ["method", "tent + em (lr 0.01): published", "tent + em (lr 0.01): ours less that"],
        ["fog", "60.0", "+0.0"],
        ["snow", "62.1", "+0.9"],
        ["mean", "61.0", "+0.5"],
    ]


def test_a_learning_rate_is_matched_where_the_published_row_has_one(runs: Path, file: Path) -> None:
    write_run(runs / "other", "tent", 0, {"fog": 0.6, "snow": 0.6}, lr=0.05, method_config=tent(lr=0.05))
    table = beside(runs, read_published(f"{file}:errors"))
    rows = {row.label: table.published.find(row) for row in table.rows if table.published}
    assert rows["tent + em (lr 0.05)"] is None
    found = rows["tent + em (lr 0.01)"]
    assert found is not None
    assert (found.mean, found.std, dict(found.domains)) == (60.0, 0.5, {"snow": 59.0})
    assert "Published, but not here: tent + em (lr 0.1)." in notes(table)


def test_a_row_chosen_with_labels_has_a_counterpart(tmp_path: Path, file: Path) -> None:
    marked = {"uses_labels": {"study": "s"}}
    write_run(tmp_path / "runs" / "a", "tent", 0, {"fog": 0.6, "snow": 0.6}, method_config=tent(), config=marked)
    assert texts(beside(tmp_path / "runs", read_published(f"{file}:mine")))["published"] == {"tent + em‡": "61.0 ±0.10"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "v"}, "weights v (w there)"),
        ({"n": 40}, "images per domain 40 (100 there)"),
        ({"stream": {"batch_size": 10}}, "batch size 10 (50 there)"),
        ({"scenario": {"reset": "never"}}, "reset never (domain there)"),
        ({"scenario": {"order": "file"}}, "order file (shuffle there)"),
        ({"method_config": tent(momentum=0.9)}, "optimizer.momentum 0.9 (0 there)"),
        ({"method_config": tent(_target_="o.Adam")}, "optimizer._target_ o.Adam (o.SGD there)"),
    ],
)
def test_another_protocol_is_said_to_be_one(tmp_path: Path, file: Path, changes: dict[str, Any], message: str) -> None:
    accuracies = {"fog": 0.6, "snow": 0.6}
    write_run(tmp_path / "runs" / "a", "tent", 0, accuracies, **{"method_config": tent(), **changes})
    told = f"not the protocol of a paper, table 1, so that differences to it mean nothing: {message}"
    assert beside(tmp_path / "runs", read_published(f"{file}:mine")).warnings == [told]


def test_other_domains_are_another_protocol(tmp_path: Path, file: Path) -> None:
    write_run(tmp_path / "runs" / "a", "tent", 0, {"fog": 0.6}, method_config=tent())
    (told,) = beside(tmp_path / "runs", read_published(f"{file}:mine")).warnings
    assert told.endswith("number of domains 1 (2 there)")


def test_every_format_has_them(runs: Path, file: Path) -> None:
    table = beside(runs, read_published(f"{file}:mine"))
    text = markdown(table)
    assert "| 61.0 ±0.10 | +0.50 |" in text
    assert "Published figures by domain, and ours less those:" in text
    assert "| tent + em (lr 0.01): ours less that | +0.0 | +0.9 | +0.5 |" in text
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
    assert "Published figures by domain" in html


def test_without_them_tables_are_as_before(runs: Path) -> None:
    (table,) = tables(find_runs([runs]))
    assert "published" not in markdown(table).lower() + wide_csv(table).lower() + latex(table).lower()


def test_the_command_shows_them(runs: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs), "--published", f"{file}:mine"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Δ published" in said
    assert "61.0 ±0.10 +0.50" in said
    main([str(runs), "--published", "table12_resnet50"])
    said = " ".join(capsys.readouterr().out.split())
    assert "weights w (resnet50.tv_in1k there)" in said
    assert "number of domains 2 (15 there)" in said


# What is wrong with a file.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("table99", "--published: there is no table 'table99'; there are table12_resnet50, table13_resnet50, "),
        ("{file}:yours", "--published: there is no table 'yours' in {file}; there are mine, errors"),
        ("{file}", "--published: there is no table '' in {file}; there are mine, errors"),
        ("nowhere.yaml:mine", "--published: there is no file nowhere.yaml"),
    ],
)
def test_unknown_names(runs: Path, file: Path, words: str, message: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(message.format(file=file))):
        main([str(runs), "--published", words.format(file=file)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows.source.mean": 1500}, "'source' must be a number from 0 to 100, per cent; got 1500"),
        ({"rows.source.mean": "much"}, "'source' must be a number from 0 to 100, per cent; got 'much'"),
        ({"rows.source.sd": 1}, "'source' has unknown keys (sd); it takes mean, std, domains"),
        ({"rows.source": {"std": 1}}, "'source' needs mean"),
        ({"rows.source": 50}, "'source' must have keys (mean, std, domains); got 50"),
        ({"rows.source.domains": [1]}, "'source' has 1 figures for 2 domains"),
        ({"rows.source.domains": {"rain": 1}}, "'source' has figures for rain, which are none of the domains"),
        ({"rows.source.domains": [50, 51]}, "'source' has a mean of 50.0, that of its 2 domains is 50.50"),
        ({"measure": "loss"}, "measure must be one of accuracy, error; got 'loss'"),
        ({"domains": ["fog", "fog"]}, "domains must be a list of names, each once; got ['fog', 'fog']"),
        ({"protocol.model": "x"}, "protocol has unknown keys (model); it takes weights, normalization, "),
        ({"rows": []}, "rows must have figures by labels, such as"),
        ({"source": None, "rows": None}, "rows must have figures"),
    ],
)
def test_bad_tables(file: Path, changes: dict[str, Any], message: str) -> None:
    content = OmegaConf.load(file)
    for key, value in changes.items():
        OmegaConf.update(content, f"mine.{key}", value, merge=False)
    OmegaConf.save(content, file)
    with pytest.raises(ValueError, match=re.escape(f"--published: {file}, mine: {message}")):
        read_published(f"{file}:mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML: "),
        ("a: 1\na: 2", "is not YAML: .*duplicate key a"),
        ("- a", "must have tables by their names, got a list"),
    ],
)
def test_files_that_have_no_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        read_published(f"{tmp_path / 'bad.yaml'}:a")
