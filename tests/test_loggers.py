"""Loggers, wandb's offline mode for real."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tta.loggers import Progress, Wandb

ROW = {"step": 0, "domain": "fog", "severity": 5, "n": 8, "batch_accuracy": 0.5, "domain_accuracy": 0.5}
ROW |= {"online_accuracy": 0.25, "entropy": 1.5, "loss": None, "used": None, "seconds": 0.1}
DOMAIN = {"domain": "fog", "severity": 5, "visit": 1, "n": 8, "accuracy": 0.5}
SUMMARY = {"accuracy": 0.5, "online_accuracy": 0.25, "images": 8, "seconds": 1.0}


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


def test_wandb_offline_holds_config_rows_and_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    logger = Wandb(project="test", mode="offline")
    logger.start("a run", {"seed": 3}, tmp_path, 8)
    for step in range(3):
        logger.batch({**ROW, "step": step})
    logger.domain(DOMAIN)
    logger.domain({**DOMAIN, "visit": 2, "accuracy": 0.75})
    logger.finish(SUMMARY)
    logger.close()
    wandb.teardown()  # as the process's end does: wandb's service writes the last records after finish() has returned
    records = offline_records(tmp_path)
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["batch/step"] for row in history] == [0, 1, 2]
    assert history[0]["batch/online_accuracy"] == 0.25
    assert "batch/loss" not in history[0]
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert run.display_name == "a run"
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["seed"] == 3
    summary: dict[str, Any] = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
    assert summary["accuracy"] == 0.5
    assert summary["domain/fog-5/accuracy"] == 0.5
    assert summary["domain/fog-5-visit2/accuracy"] == 0.75


def test_runs_that_go_side_by_side_log_each_to_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    loggers = {name: Wandb(project="test", mode="offline") for name in ("first", "second")}
    for name, logger in loggers.items():
        (tmp_path / name).mkdir()
        logger.start(name, {}, tmp_path / name, 8)
    for step in range(3):
        for logger in loggers.values():
            logger.batch({**ROW, "step": step})
    for logger in loggers.values():
        logger.finish(SUMMARY)
        logger.close()
    wandb.teardown()
    for name in loggers:
        records = offline_records(tmp_path / name)
        assert sum(record.WhichOneof("record_type") == "history" for record in records) == 3
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        assert run.display_name == name


def test_wandb_goes_on_with_the_run_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options))
    for mode, done in (("online", 0), ("online", 8), ("offline", 8), ("online", 0)):
        Wandb(mode=mode).start("a run", {}, tmp_path, 16, done)
    first, second, offline, anew = asked
    assert first["id"] == second["id"] == offline["id"] != anew["id"]
    assert [options["resume"] for options in asked] == [None, "allow", None, None]


def test_wandb_disabled_takes_everything(tmp_path: Path) -> None:
    logger = Wandb(mode="disabled")
    logger.start("a run", {}, tmp_path, 8)
    logger.batch(ROW)
    logger.domain(DOMAIN)
    logger.finish(SUMMARY)
    logger.close()
    assert not list(tmp_path.rglob("*.wandb"))


def test_wandb_refuses_another_mode() -> None:
    with pytest.raises(ValueError, match="must be online, offline or disabled, got 'of'"):
        Wandb(mode="of")


def test_progress_is_silent_when_not_in_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = Progress()
    logger.start("a run", {}, tmp_path, 16)
    logger.batch(ROW)
    logger.domain(DOMAIN)
    logger.finish(SUMMARY)
    logger.close()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(("columns", "done"), [(80, 0), (160, 0), (80, 1000)])
def test_progress_shows_accuracy_speed_and_time_left_in_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], columns: int, done: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    logger = Progress()
    logger.start("a run with a long name", {}, tmp_path, 45000, done)
    logger.batch({**ROW, "domain": "elastic_transform"})
    logger._bar.refresh()
    logger.close()
    text = capfd.readouterr().err
    for word in ("elastic_transform", f"{done + 8}/45000", "25.0 %", "images/s", "-:--:--"):
        assert word in text
    assert ("a run with a long name elastic_transform" in text) == (columns == 160)
