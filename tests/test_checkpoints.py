"""A run that is cut off anywhere goes on to the same rows."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.backbones import small_net
from helpers.sweep_files import left, rows
from tta import checkpoints as module
from tta.checkpoints import Checkpoints, code_digest, load_method_state, method_state
from tta.loggers import Logger
from tta.methods import Method, Tent
from tta.methods.parameters import norm_parameters
from tta.objectives import AdaDEM
from tta.runner import Runner
from tta.runs import RunDirectory
from tta.streams import Scenario, Stream
from tta.streams.base import Domain, Loaded

CPU = torch.device("cpu")
ORIGIN = {"run": "1", "code": "2", "device": "cpu"}
BATCHES = 9


def stream() -> Stream:
    """Three domains of 28 images, of which one in seven cannot be read; batches of 10."""

    def load(shade: int, index: Tensor) -> Loaded:
        images = torch.stack([torch.full((3, 8, 8), (37 * int(i) + shade) % 256, dtype=torch.uint8) for i in index])
        (kept,) = torch.where(index % 7 > 0)
        return Loaded(images[kept], kept, tuple(f"{shade}-{int(i)}" for i in index if i % 7 == 0))

    labels = torch.arange(28) % 4
    names = ("fog", "snow", "frost")
    return Stream([Domain(name, 5, labels, functools.partial(load, 50 * n)) for n, name in enumerate(names)], 4, 10)


class Drawing(Tent):
    """Draws from all global generators, as methods should not."""

    def step(self, images: Tensor) -> Tensor:
        noise = torch.rand(()) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return super().step(images + 0.1 * noise)


def method() -> Method:
    return Drawing(small_net("batch"), AdaDEM(), functools.partial(torch.optim.Adam, lr=0.05))


class CutOffError(Exception):
    pass


def run(folder: Path, scenario: Scenario, every: int | None = 1, stop: int | None = None) -> dict[str, Any]:
    """Run in a directory, from its checkpoint if there is one, up to batch ``stop`` of this call."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    directory = RunDirectory(folder / "run")
    checkpoints = Checkpoints(directory.checkpoint_path, ORIGIN, every)
    said: list[str] = []
    checkpoints.load(said.append)
    assert not said
    loggers: list[Logger] = []
    runner = Runner(method(), stream(), scenario, 0, directory, loggers, CPU, checkpoints=checkpoints)
    done = runner.prepare()
    assert (done > 0) == (checkpoints.state is not None)
    predict, calls = runner._predict, 0

    def cut_off(images: Tensor) -> Tensor:
        nonlocal calls
        if calls == stop:
            directory.write("batches", {"step": 12345})  # a row that the checkpoint does not know
            raise CutOffError
        calls += 1
        return predict(images)

    runner._predict = cut_off  # type: ignore[method-assign]
    with directory:
        summary = runner.run()
        directory.finish(summary)
    return {**summary, "calls": calls}


SCENARIOS = {
    "single": Scenario(),
    "continual": Scenario("never"),
    "mixed": Scenario("never", mix=True),
    "recurring": Scenario("never", rounds=2),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
@pytest.mark.parametrize("every", [1, 2, None])
def test_a_run_cut_off_anywhere_goes_on_to_the_same_files(
    tmp_path: Path, scenario: Scenario, every: int | None
) -> None:
    expected = run(tmp_path / "undisturbed", scenario, every)
    for stop in range(1, expected["calls"], 1 if every == 2 else 3):
        folder = tmp_path / str(stop)
        with pytest.raises(CutOffError):
            run(folder, scenario, every, stop)
        summary = run(folder, scenario, every)
        assert left(folder) == left(tmp_path / "undisturbed")
        assert summary["skipped"] == expected["skipped"]
        assert len(expected["skipped"]) == 12 * scenario.rounds
        if every:
            assert summary["calls"] == expected["calls"] - stop // every * every


def test_a_run_cut_off_again_and_again(tmp_path: Path) -> None:
    scenario = Scenario("never")
    run(tmp_path / "undisturbed", scenario)
    for _ in range(BATCHES - 1):
        with pytest.raises(CutOffError):
            run(tmp_path / "cut", scenario, stop=1)
    assert run(tmp_path / "cut", scenario)["calls"] == 1
    assert left(tmp_path / "cut") == left(tmp_path / "undisturbed")


def test_the_figures_tell_whether_the_state_was_restored(tmp_path: Path) -> None:
    """What the tests above rely on: each part of the state shows in the rows."""
    run(tmp_path / "undisturbed", Scenario("never"))
    for forgotten in ("set_random_state", "load_method_state"):
        with pytest.MonkeyPatch.context() as patch:
            with pytest.raises(CutOffError):
                run(tmp_path / forgotten, Scenario("never"), stop=4)
            patch.setattr(f"tta.runner.{forgotten}", lambda *arguments: None)
            run(tmp_path / forgotten, Scenario("never"))
        assert left(tmp_path / forgotten) != left(tmp_path / "undisturbed")


def test_seconds_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100_000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    expected = run(tmp_path / "undisturbed", Scenario())["seconds"]
    with pytest.raises(CutOffError):
        run(tmp_path / "cut", Scenario(), stop=8)
    assert run(tmp_path / "cut", Scenario())["seconds"] > 0.8 * expected


def saved(path: Path) -> Checkpoints:
    (path.parent / "batches.csv").write_text("step\n0\n")
    checkpoints = Checkpoints(path, ORIGIN)
    checkpoints.save({"batch": 1, "files": {"batches": 7}})
    return checkpoints


def reason(path: Path, origin: dict[str, str] | None = None) -> str:
    said: list[str] = []
    checkpoints = Checkpoints(path, origin or ORIGIN)
    checkpoints.load(said.append)
    assert not (said and checkpoints.state)
    return "".join(said)


def test_a_checkpoint_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    assert reason(path) == ""  # there is none: nothing to say
    saved(path)
    checkpoints = Checkpoints(path, ORIGIN)
    checkpoints.load(pytest.fail)
    assert checkpoints.state == {"batch": 1, "files": {"batches": 7}}


@pytest.mark.parametrize("other", ORIGIN)
def test_a_checkpoint_of_another_run_code_or_device_is_not_used(tmp_path: Path, other: str) -> None:
    saved(tmp_path / "checkpoint")
    said = reason(tmp_path / "checkpoint", {**ORIGIN, other: "x"})
    assert said.endswith(f"checkpoint is not used (it is of another {other}): it is run from the beginning")


def spoil_middle(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-1],
    "a bit": spoil_middle,
    "header alone": lambda content: content.partition(b"\n")[0],
    "another json": lambda content: b"[]\n" + content,
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_broken_checkpoint_is_not_used(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "checkpoint"
    saved(path)
    path.write_bytes(spoil(path.read_bytes()))
    assert "is not used (it is broken)" in reason(path)


def test_a_checkpoint_of_rows_that_are_gone_is_not_used(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint")
    (tmp_path / "batches.csv").write_text("step\n")
    assert "is not used (batches.csv has lost rows)" in reason(tmp_path / "checkpoint")


def test_a_checkpoint_holds_nothing_but_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    load = torch.load

    def asking(*arguments: Any, **options: Any) -> Any:
        asked.append(options["weights_only"])
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", asking)
    saved(tmp_path / "checkpoint")
    assert reason(tmp_path / "checkpoint") == ""
    assert asked == [True]


def test_due_every_so_many_batches_and_between_domains_that_are_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    checkpoints = Checkpoints(tmp_path / "checkpoint", ORIGIN, every=3)
    assert [number for number in range(1, 10) if checkpoints.due(number, False)] == [3, 6, 9]
    checkpoints = Checkpoints(tmp_path / "checkpoint", ORIGIN)
    assert not any(checkpoints.due(number, False) for number in range(1, 10))
    assert checkpoints.due(5, True)
    checkpoints._cost = 0.5  # seconds
    assert not checkpoints.due(5, True)
    now = 0.5 * module.SHARE
    assert checkpoints.due(5, True)


def test_every_must_be_a_whole_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.every must be a whole number of at least 1, got 0"):
        Checkpoints(tmp_path / "checkpoint", ORIGIN, every=0)


def test_weights_that_never_change_are_not_saved() -> None:
    one = method()
    state = method_state(one)
    adapted = {f"backbone.{name}" for name in norm_parameters(one.backbone)}
    assert {name for name in state if name.startswith("backbone.")} == adapted
    one(torch.rand(8, 3, 8, 8))
    other = method()
    load_method_state(other, method_state(one))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_codes_name_changes_with_the_file_of_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_part.py").write_text("class Part: pass\n")
    import my_part  # type: ignore[import-not-found]

    before = code_digest(my_part.Part())
    assert code_digest(my_part.Part()) == before != code_digest()
    (tmp_path / "my_part.py").write_text("class Part: x = 1\n")
    assert code_digest(my_part.Part()) != before


def test_the_codes_name_changes_with_each_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    files = [tmp_path / "checkpoints.py", tmp_path / "inner" / "other.py"]
    monkeypatch.setattr(module, "__file__", str(files[0]))

    def name(content: str, of: Path) -> str:
        of.write_text(content)
        module._package_digest.cache_clear()
        return code_digest()

    try:
        names = [name("x = 1", file) for file in files] + [name("x = 2", file) for file in files]
        monkeypatch.setattr(torch, "__version__", "0.0")
        names.append(name("x = 2", files[0]))
        assert len(set(names)) == 5
    finally:
        module._package_digest.cache_clear()


def test_rows_behind_those_kept_go(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as directory:
        directory.write("domains", {"domain": "fog"})
        kept = directory.sizes()
        directory.write("domains", {"domain": "snow"})
    with RunDirectory(tmp_path / "run", kept) as directory:
        directory.write("domains", {"domain": "frost"})
    assert [row["domain"] for row in rows(tmp_path / "run" / "domains.csv")] == ["fog", "frost"]


def test_a_run_that_begins_anew_has_no_checkpoint_of_before(tmp_path: Path) -> None:
    with pytest.raises(CutOffError):
        run(tmp_path, Scenario(), stop=5)
    with RunDirectory(tmp_path / "run") as directory:
        assert not directory.checkpoint_path.exists()


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as directory:
        directory.finish({})
        expected = left(tmp_path)
    (tmp_path / "run" / "checkpoint").write_bytes(b"")
    (tmp_path / "run" / ".checkpoint-abc").write_bytes(b"")
    (tmp_path / "run" / ".summary.json-abc.json").write_bytes(b"")
    directory.tidy()
    assert left(tmp_path) == expected
