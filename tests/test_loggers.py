"""Loggers, wandb's offline mode for real."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import wandb

from helpers.errors import assert_names, raises_naming
from tta.loggers import Progress, Wandb

ROW = {"step": 0, "domain": "fog", "severity": 5, "n": 8, "batch_accuracy": 0.5, "domain_accuracy": 0.5}
ROW |= {"online_accuracy": 0.25, "entropy": 1.5, "loss": None, "used": None, "seconds": 0.1}
DOMAIN = {"domain": "fog", "severity": 5, "visit": 1, "n": 8, "accuracy": 0.5}
SUMMARY = {"accuracy": 0.5, "online_accuracy": 0.25, "images": 8, "seconds": 1.0}
LOGGED = {"batch/step": 0, "batch/domain": "fog", "batch/severity": 5, "batch/n": 8, "batch/batch_accuracy": 0.5}
LOGGED |= {"batch/domain_accuracy": 0.5, "batch/online_accuracy": 0.25, "batch/entropy": 1.5, "batch/seconds": 0.1}
FIGURES = {**SUMMARY, "domain/fog-5/accuracy": 0.5, "domain/fog-5-visit2/accuracy": 0.75}


def tell(logger: Wandb, folder: Path) -> None:
    """Tell of a run of three batches and two visits of a domain, but for its end."""
    folder.mkdir()
    logger.start(folder.name, {"seed": 3}, folder, 8)
    for step in range(3):
        logger.batch({**ROW, "step": step})
    logger.domain(DOMAIN)
    logger.domain({**DOMAIN, "visit": 2, "accuracy": 0.75})


class Service:
    """A run of wandb's that keeps what it is told."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}
        self.finished = False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_wandb__is_told_rows_and_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, asked = Service(), {}
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or service)
    logger = Wandb(project="test", tags=["a"])
    tell(logger, tmp_path / "run")
    logger.finish(SUMMARY)
    logger.close()
    assert service.logged == [(step, {**LOGGED, "batch/step": step}) for step in range(3)]
    assert service.summary == FIGURES
    assert service.finished
    expected = {"project": "test", "tags": ["a"], "entity": None, "name": "run", "config": {"seed": 3}}
    assert {key: asked[key] for key in expected} == expected


def test_wandb__goes_on_with_the_run_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options))
    for mode, done in (("online", 0), ("online", 8), ("offline", 8), ("online", 0)):
        Wandb(mode=mode).start("a run", {}, tmp_path, 16, done)
    first, second, offline, anew = asked
    assert first["id"] == second["id"] == offline["id"] != anew["id"]
    assert [options["resume"] for options in asked] == [None, "allow", None, None]


def test_wandb__disabled_takes_everything(tmp_path: Path) -> None:
    logger = Wandb(mode="disabled")
    tell(logger, tmp_path / "run")
    logger.finish(SUMMARY)
    logger.close()
    assert not list(tmp_path.rglob("*.wandb"))


def test_wandb__refuses_another_mode() -> None:
    with raises_naming(ValueError, "logger.wandb.mode", "'of'", "online", "offline", "disabled"):
        Wandb(mode="of")


def offline_records(folder: Path) -> list[Any]:
    """Read a wandb file back: a LevelDB log (blocks of 32 KiB, pieces of checksum, length, kind, data) of protobufs."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("*.wandb")
    content = file.read_bytes()
    records, data, place = [], b"", 7  # the file's own header is 7 bytes
    while place + 7 <= len(content):
        left_in_block = 32768 - place % 32768
        if left_in_block < 7:
            place += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            records.append(record)
            data = b""
    return records


@pytest.mark.slow
def test_wandb__offline_runs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each logs to its own file what the service would be sent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    loggers = {name: Wandb(project="test", mode="offline") for name in ("first", "second")}
    for name, logger in loggers.items():
        tell(logger, tmp_path / name)
    for logger in loggers.values():
        logger.finish(SUMMARY)
        logger.close()
    wandb.teardown()  # as the process's end does: wandb's service writes the last records after finish() has returned
    for name in loggers:
        records = offline_records(tmp_path / name)
        history = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.WhichOneof("record_type") == "history"
        ]
        assert [{key: row.get(key) for key in LOGGED} for row in history] == [
            {**LOGGED, "batch/step": step} for step in range(3)
        ]
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        assert run.display_name == name
        assert {item.key: json.loads(item.value_json) for item in run.config.update}["seed"] == 3
        summary: dict[str, Any] = {}
        for record in records:
            if record.WhichOneof("record_type") == "summary":
                summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
        assert {key: summary.get(key) for key in FIGURES} == FIGURES


def test_progress__is_silent_outside_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = Progress()
    logger.start("a run", {}, tmp_path, 16)
    logger.batch(ROW)
    logger.domain(DOMAIN)
    logger.finish(SUMMARY)
    logger.close()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(("columns", "done"), [(80, 1000), (160, 0)])
def test_progress__shows_figures_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], columns: int, done: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    logger = Progress()
    logger.start("a run with a long name", {}, tmp_path, 45000, done)
    logger.batch({**ROW, "domain": "elastic_transform"})
    logger.close()
    text = capfd.readouterr().err
    assert_names(text, "elastic_transform", f"{done + 8}/45000", "25.0 %", "images/s", "-:--:--")
    assert ("a run with a long name elastic_transform" in text) == (columns == 160)
