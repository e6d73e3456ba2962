"""A study's trials: which values, how many, and what becomes of them when processes are killed or work together."""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.forks import forked
from tta.search.report import Progress
from tta.search.space import Range, Space, Values
from tta.search.study import Done, Study

CONFIGURATION = {"stream": {"severity": 5}, "seed": 0}


def allowed(at: Values) -> bool:
    return at["objective.tau"] * at["objective.alpha"] <= 2


DEM = Space((Range("objective.tau", 0.1, 2.0, 0.1), Range("objective.alpha", 0.0, 2.0, 0.1)), allowed)
SMALL = Space((Range("objective.tau", 0.5, 2.0, 0.5), Range("objective.alpha", 0.0, 2.0, 0.5)), allowed)
RATE = Space((Range("optimizer.lr", 1e-4, 0.1, log=True),))


def accuracy(values: Values) -> float:
    """Best at tau 1.4 and alpha 0.6."""
    return 0.8 - 0.1 * (values["objective.tau"] - 1.4) ** 2 - 0.1 * (values["objective.alpha"] - 0.6) ** 2


def study(folder: Path, trials: int = 30, space: Space = DEM, **options: Any) -> Study:
    return Study(folder, CONFIGURATION, space, options.pop("seed", 0), trials, **{"prune": 0, **options})


def search(of: Study, value: Callable[[Values], float] = accuracy, stop: int | None = None) -> list[Done]:
    """Do trials; stop short of the end of trial number ``stop``, as if killed, but for the process."""
    begun = 0
    while (trial := of.take()) is not None:
        if begun == stop:
            trial._lock.release()
            break
        with trial:
            trial.finish(value(trial.values))
        begun += 1
    return of.done()


def values(done: list[Done]) -> list[tuple[float, ...]]:
    return [tuple(one.values.values()) for one in done]


def test_trials_are_as_many_as_asked_for_new_allowed_and_on_the_grid(tmp_path: Path) -> None:
    done = search(study(tmp_path, 40))
    assert len(done) == len(set(values(done))) == 40
    assert all(allowed(one.values) for one in done)
    assert all(one.values in (DEM.grid or []) for one in done)
    assert [one.number for one in done] == list(range(40))


def test_the_search_learns(tmp_path: Path) -> None:
    done = search(study(tmp_path, 40))
    best = max(done, key=lambda one: one.accuracy or 0)
    assert best.accuracy == pytest.approx(0.8, abs=0.005)
    early, late = (float(np.mean([one.accuracy or 0 for one in part])) for part in (done[:10], done[20:]))
    assert late > early + 0.03


def test_same_seed_same_trials_and_the_first_is_given(tmp_path: Path) -> None:
    first = {"objective.tau": 1.0, "objective.alpha": 1.0}
    one, same, other = (
        values(search(study(tmp_path / name, 14, seed=seed, first=first)))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == same
    assert one[0] == other[0] == (1.0, 1.0)
    assert one[1:] != other[1:]


@pytest.mark.parametrize("stop", [0, 5, 14])
def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path, stop: int) -> None:
    undisturbed = search(study(tmp_path / "a", 20))
    search(study(tmp_path / "b", 20), stop=stop)
    assert search(study(tmp_path / "b", 20)) == undisturbed


def test_each_trial_is_told_once_though_a_killed_one_makes_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = study(tmp_path, 4)
    killed, other = of.take(), of.take()
    assert killed is not None
    assert other is not None
    with other:
        other.finish(0.5)
    killed._lock.release()
    with Progress(4, of.done(), "here") as progress:
        search(of)
        progress.show(of.done())
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] == ["2/4", "3/4", "4/4"]


def test_more_trials_go_on_from_there_and_fewer_are_enough(tmp_path: Path) -> None:
    assert search(study(tmp_path / "a", 12)) == search(study(tmp_path / "b", 20))[:12]
    assert search(study(tmp_path / "a", 20)) == search(study(tmp_path / "b", 20))
    assert len(search(study(tmp_path / "a", 5))) == 20


def test_a_grid_is_tried_up_to_its_end(tmp_path: Path) -> None:
    of = study(tmp_path, 500, SMALL)
    done = search(of)
    assert SMALL.grid is not None
    assert sorted(values(done)) == sorted(tuple(at.values()) for at in SMALL.grid)
    assert of.trials == len(SMALL.grid) == len(done)


def test_a_rate_is_searched_by_its_logarithm(tmp_path: Path) -> None:
    done = search(study(tmp_path, 40, RATE), lambda at: 1 - (math.log10(at["optimizer.lr"]) + 2) ** 2)
    rates = [one.values["optimizer.lr"] for one in done]
    assert all(1e-4 <= rate <= 0.1 and rate == float(f"{rate:.4g}") for rate in rates)
    assert max(done, key=lambda one: one.accuracy or 0).values["optimizer.lr"] == pytest.approx(0.01, rel=0.2)
    assert min(rates[:10]) < 1e-3 < max(rates[:10])


def test_nothing_allowed_off_a_grid_is_told(tmp_path: Path) -> None:
    of = study(tmp_path, 5, Space((Range("objective.tau", 0.0, 1.0),), lambda at: False))
    with pytest.raises(ValueError, match=r"of 10000 random draws none is new and goes together"):
        of.take()


def test_what_is_behind_the_median_of_those_that_came_as_far_is_given_up(tmp_path: Path) -> None:
    of = study(tmp_path, 40, prune=0.5)
    given_up, bars = [], []
    so_far: list[float] = []
    while (trial := of.take()) is not None:
        with trial:
            now = accuracy(trial.values)
            # An easy beginning, which Optuna's own rule would take for the trial's best.
            assert not trial.report(1, 0.99)
            behind = trial.report(2, now)
            assert behind == (len(so_far) >= 10 and now < float(np.median(so_far)))
            so_far.append(now)
            if behind:
                trial.give_up()
                given_up.append(now)
                bars.append(float(np.median(so_far)))
            else:
                trial.finish(now)
    done = of.done()
    assert len(done) == 40
    assert 5 < len(given_up) == sum(one.accuracy is None for one in done)
    assert [one.so_far for one in done if one.accuracy is None] == given_up
    assert {one.seen for one in done} == {2}
    assert of.take() is None  # those given up count


def test_nothing_is_given_up_without_a_share(tmp_path: Path) -> None:
    of = study(tmp_path, 25, prune=0)
    for number in range(25):
        trial = of.take()
        assert trial is not None
        with trial:
            assert not trial.report(1, -number)
            trial.finish(0.5)


def test_a_trial_that_diverges_or_fails(tmp_path: Path) -> None:
    of = study(tmp_path, 3)
    first, second = of.take(), of.take()
    assert first is not None
    assert second is not None
    with first:
        first.give_up(diverged=True)
    with pytest.raises(ZeroDivisionError), second:
        _ = 1 / 0
    (done,) = of.done()
    assert (done.diverged, done.accuracy, done.seen) == (True, None, 0)
    rest = search(of)
    assert len(rest) == 3
    assert second.values in [one.values for one in rest]  # it counts for nothing, and so comes again


def test_another_configuration_in_the_same_place_is_refused_with_what_differs(tmp_path: Path) -> None:
    search(study(tmp_path, 2))
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(ValueError, match=r"holds a search of another configuration: new is not given there and \[1\] "
                                         r"here; seed is 0 there and 1 here; stream.severity is 5 there and 3 here. "
                                         r"Choose another search.dir, or delete that folder"):  # fmt: skip
        Study(tmp_path, {"stream": {"severity": 3}, "seed": 1, "new": [1]}, DEM, 0, 2)
    assert (tmp_path / "study.db").read_bytes() == before


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be taken for one" * 20, b"half"])
def test_a_broken_file_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "study.db"
    if content == b"half":
        search(study(tmp_path, 3))
        content = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(content)
    with pytest.raises(OSError, match=r"study.db cannot be used \(.*\): if it is broken, delete it to begin anew, or"):
        search(study(tmp_path, 5))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"search.dir: .*file/x cannot be written .*; choose another"):
        study(tmp_path / "file" / "x")


def worker(folder: Path) -> subprocess.Popen[str]:
    def work() -> None:
        of = study(folder, 24)
        while (trial := of.take()) is not None:
            with trial:
                print(*trial.values.values(), flush=True)
                time.sleep(0.05)
                trial.finish(accuracy(trial.values))

    return forked(work, stdout=subprocess.PIPE)


def test_processes_share_the_trials_and_one_may_be_killed(tmp_path: Path) -> None:
    workers = [worker(tmp_path) for _ in range(3)]
    victim = workers[0]
    assert victim.stdout is not None
    begun = [victim.stdout.readline() for _ in range(3)]  # the third is not finished
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert all(other.wait(timeout=120) == 0 for other in workers[1:])
    done = study(tmp_path, 24).done()
    assert len(done) == len(set(values(done))) == 24
    assert all(one.accuracy == accuracy(one.values) for one in done)
    lines = begun + [line for one in workers for line in (one.stdout or [])]
    for one in workers:
        assert one.stdout is not None
        one.stdout.close()
    # Nothing was done twice, but for what the killed one was about.
    repeated = [line for line, times in Counter(lines).items() if times > 1]
    assert len(repeated) <= 1
    assert len(lines) - len(set(lines)) == len(repeated)


def test_the_last_to_come_waits_for_what_others_are_about(tmp_path: Path) -> None:
    of = study(tmp_path, 24)
    other = worker(tmp_path)
    assert other.stdout is not None
    other.stdout.readline()
    other.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        while len(of.done()) + 1 < 24:
            trial = of.take()
            assert trial is not None
            with trial:
                trial.finish(accuracy(trial.values))
    finally:
        other.send_signal(signal.SIGCONT)
    assert of.take() is None  # not before the other has finished
    assert len(of.done()) == 24
    assert time.monotonic() - began < 120
    other.stdout.close()
    assert other.wait(timeout=60) == 0
