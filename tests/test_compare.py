from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tta.compare import find_runs, main, table
from tta.figures import _stretches


def write_run(folder: Path, method: str, seed: int, accuracies: dict[str, float], **changes: Any) -> None:
    folder.mkdir(parents=True)
    stream = {"_target_": "x", "batch_size": 50, **changes.pop("stream", {})}
    learns = {"objective": {}, "optimizer": {"lr": 0.01}} if method == "tent" else {}
    method_config = changes.pop("method_config", {"_target_": "x", **learns})
    summary = {
        "accuracy": sum(accuracies.values()) / len(accuracies),
        "domains": [{"domain": k, "severity": 5, "n": 100, "accuracy": v} for k, v in accuracies.items()],
        "choices": {
            "method": method,
            "objective": "em",
            "stream": "demo",
            "scenario": "single_domain",
            "model": "demo",
        },
        "weights": "w",
        "normalization": None,
        "data": "d",
        "command": ["/somewhere/tta", "-m", "method=source,tent", "stream.corruptions=[fog,snow]"],
        "date": f"2026-01-0{seed + 1}T12:00:00+00:00",
        "packages": {"torch": "2.11.0"},
        "device": "cpu (2 threads)",
        "config": {
            "model": {},
            "stream": stream,
            "scenario": {},
            "method": method_config,
            "seed": seed,
            "precision": "fp32",
        },
        **changes,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    batches = [
        {"step": i, "domain": name, "n": 50, "domain_accuracy": value}
        for i, (name, value) in enumerate((name, value) for name, value in accuracies.items() for _ in range(2))
    ]
    pd.DataFrame(batches).to_csv(folder / "batches.csv", index=False)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "a", "source", 0, {"fog": 0.5, "snow": 0.7})
    write_run(tmp_path / "b", "tent", 0, {"fog": 0.6, "snow": 0.6})
    write_run(tmp_path / "sub" / "c", "tent", 1, {"fog": 0.8, "snow": 0.8})
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "batches.csv").write_text("step\n")
    return tmp_path


def test_seeds_become_one_row_with_mean_and_standard_deviation(runs: Path) -> None:
    frame = table(find_runs([runs]))
    assert list(frame.index) == ["source", "tent + em (lr 0.01)"]
    assert frame.loc["tent + em (lr 0.01)", "fog"] == pytest.approx(70)
    assert frame.loc["tent + em (lr 0.01)", "mean"] == pytest.approx(70)
    assert frame.loc["tent + em (lr 0.01)", "std"] == pytest.approx(14.142, abs=1e-3)
    assert frame.loc["source", "mean"] == pytest.approx(60)


def test_the_command_writes_a_table_and_a_figure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(runs)])
    text = capsys.readouterr().out
    assert "70.00 ±14.14" in text
    markdown = (runs / "comparison.md").read_text()
    assert "| fog | 50.0 | **70.0** |" in markdown
    assert "| snow | **70.0** | **70.0** |" in markdown
    command = "`tta -m method=source,tent 'stream.corruptions=[fog,snow]'`"
    assert f"Runs: {command}; 2026-01-01, 2026-01-02; torch 2.11.0; cpu (2 threads).\n" in markdown
    assert pd.read_csv(runs / "comparison.csv")["mean"].tolist() == pytest.approx([60, 70])
    with Image.open(runs / "comparison.png") as image:
        assert image.size[0] > 1000
    assert not (runs / "comparison-lr.png").exists()  # there is one learning rate


def test_a_methods_seed_that_is_the_runs_does_not_tell_runs_apart(runs: Path) -> None:
    for seed in range(3):
        write_run(
            runs / f"r{seed}", "roid", seed, {"fog": 0.5, "snow": 0.1}, method_config={"_target_": "x", "seed": seed}
        )
    assert table(find_runs([runs])).loc["roid", "seeds"] == 3


def test_runs_that_differ_in_another_option_are_not_seeds_of_each_other(runs: Path) -> None:
    for number, momentum in enumerate((0.0, 0.9)):
        method_config = {"_target_": "x", "objective": {}, "optimizer": {"lr": 0.1, "momentum": momentum}}
        write_run(runs / f"m{number}", "tent", 0, {"fog": 0.5, "snow": 0.1}, method_config=method_config)
    assert [label for label in table(find_runs([runs])).index if "momentum" in label] == [
        "tent + em (lr 0.1) optimizer.momentum=0.0",
        "tent + em (lr 0.1) optimizer.momentum=0.9",
    ]


def test_many_rows_have_their_mean_alone_and_a_column_for_each_learning_rate(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        method_config = {"_target_": "x", "objective": {}, "optimizer": {"lr": 0.1 * (number + 1)}}
        accuracies = {"fog": 0.1 * number, "snow": 0.1}
        write_run(runs / f"lr{number}", "tent", 0, accuracies, method_config=method_config)
    main([str(runs)])
    terminal = capsys.readouterr().out
    assert "fog" not in terminal
    assert "tent + em (lr 0.2)" in terminal
    markdown = (runs / "comparison.md").read_text()
    assert "|  | no learning rate | 0.01 | 0.1 | 0.2 | 0.3 | 0.4 | 0.5 | 0.6 |\n" in markdown
    assert "| tent + em |  | **70.00 ±14.14** | 5.00 | 10.00 | 15.00 | 20.00 | 25.00 | 30.00 |\n" in markdown
    assert re.search(r"^\| source \| [\d.]+ \|  \|  \|  \|  \|  \|  \|  \|$", markdown, re.MULTILINE)
    with Image.open(runs / "comparison-lr.png") as image:
        assert image.size[0] > 1000
    assert pd.read_csv(runs / "comparison.csv")["fog"].tolist() == pytest.approx([0, 10, 20, 30, 40, 50, 50, 70])


def test_runs_that_cannot_be_compared_are_in_tables_apart(runs: Path) -> None:
    write_run(runs / "d", "tent", 0, {"fog": 0.9, "snow": 0.9}, stream={"batch_size": 10})
    write_run(runs / "e", "tent", 0, {"fog": 0.9, "snow": 0.9}, weights="others")
    write_run(runs / "f", "tent", 0, {"fog": 0.9, "snow": 0.9}, data="others")
    write_run(runs / "g", "tent", 2, {"fog": 0.9, "snow": 0.9}, stream={"root": "elsewhere"})  # goes with the first
    main([str(runs), "--out", str(runs / "out")])
    assert sorted(p.name for p in (runs / "out").glob("*.md")) == [f"comparison-{i}.md" for i in (1, 2, 3, 4)]


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match="there is no folder"):
        main([str(tmp_path / "nowhere")])


def write_visits(folder: Path, visits: list[tuple[str, int, int, float]]) -> Path:
    """A finished run whose visits are (domain, severity, visit, accuracy), of two batches each."""
    folder.mkdir(parents=True)
    domains = [{"domain": d, "severity": s, "visit": v, "n": 100, "accuracy": a} for d, s, v, a in visits]
    config: dict[str, Any] = {"model": {}, "stream": {"batch_size": 50}, "scenario": {"rounds": 2}}
    config |= {"method": {"_target_": "x"}, "seed": 0, "precision": "fp32"}
    summary: dict[str, Any] = {
        "accuracy": float(np.mean([v[-1] for v in visits])),
        "domains": domains,
        "weights": "w",
        "data": "d",
    }
    summary |= {"choices": {"method": "tent"}, "normalization": None, "command": ["tta"], "date": "2026-01-01T"}
    summary |= {"packages": {"torch": "2"}, "device": "cpu", "config": config}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = ["step,domain,severity,visit,n,domain_accuracy"]
    lines += [f"{2 * i + k},{d},{s},{v},50,{a}" for i, (d, s, v, a) in enumerate(visits) for k in (0, 1)]
    (folder / "batches.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_compare_shows_rounds_as_visits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visits = [("fog", 5, 1, 0.8), ("snow", 5, 1, 0.6), ("fog", 5, 2, 0.4), ("snow", 5, 2, 0.1)]
    write_visits(tmp_path / "a", visits)
    (row,) = table(find_runs([tmp_path])).to_dict("records")
    assert {k: v for k, v in row.items() if k not in ("std", "seeds")} == pytest.approx(
        {"fog": 60, "snow": 35, "visit 1": 70, "visit 2": 25, "mean": 47.5}
    )
    main([str(tmp_path)])
    assert "rounds=2" in capsys.readouterr().out
    assert "| visit 2 | **25.0** |" in (tmp_path / "comparison.md").read_text()


def test_compare_shows_severities_of_a_gradual_run(tmp_path: Path) -> None:
    levels = [(1, 1, 0.9), (2, 1, 0.7), (1, 2, 0.5)]
    write_visits(
        tmp_path / "a", [("fog", s, v, a) for s, v, a in levels] + [("snow", s, v, a / 2) for s, v, a in levels]
    )
    (row,) = table(find_runs([tmp_path])).to_dict("records")
    assert {k: v for k, v in row.items() if k not in ("std", "seeds")} == pytest.approx(
        {"fog": 70, "snow": 35, "severity 1": 52.5, "severity 2": 52.5, "mean": 52.5}
    )


def test_compare_draws_many_visits(tmp_path: Path) -> None:
    visits = [(name, 5, visit, 0.5) for visit in range(1, 31) for name in ("fog", "snow")]
    run = find_runs([write_visits(tmp_path / "a", visits)])[0]
    places = run.batches().set_index("step")
    end = places["n"].cumsum()
    assert _stretches(places, end) == [(200.0 * k, f"visit {k}") for k in range(1, 31)]
    few = places.iloc[:8]
    assert [name for _, name in _stretches(few, end[:8])] == ["fog", "snow", "fog", "snow"]
    main([str(tmp_path)])
    assert (tmp_path / "comparison.png").is_file()
