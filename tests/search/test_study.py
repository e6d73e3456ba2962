"""A study's trials: which values, how many, and what becomes of them when processes are killed or work together."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.errors import assert_names, raises_naming
from tta.search import study as study_module
from tta.search.report import Progress
from tta.search.space import Range, Space, Values
from tta.search.study import Done, Study

CONFIGURATION = {"stream": {"severity": 5}, "seed": 0}
REPOSITORY = Path(__file__).resolve().parents[2]


def allowed(at: Values) -> bool:
    return at["objective.tau"] * at["objective.alpha"] <= 2


DEM = Space((Range("objective.tau", 0.1, 2.0, 0.1), Range("objective.alpha", 0.0, 2.0, 0.1)), allowed)
SMALL = Space((Range("objective.tau", 0.5, 2.0, 0.5), Range("objective.alpha", 0.0, 2.0, 1.0)), allowed)
RATE = Space((Range("optimizer.lr", 1e-4, 0.1, log=True),))


def accuracy(values: Values) -> float:
    """Best at tau 1.4 and alpha 0.6."""
    return 0.8 - 0.1 * (values["objective.tau"] - 1.4) ** 2 - 0.1 * (values["objective.alpha"] - 0.6) ** 2


def study(folder: Path, trials: int = 30, space: Space = DEM, **options: Any) -> Study:
    return Study(folder, CONFIGURATION, space, options.pop("seed", 0), trials, **{"prune": 0, **options})


def search(of: Study, value: Callable[[Values], float] = accuracy, stop: int | None = None) -> list[Done]:
    """Do trials; drop trial number ``stop`` unfinished and its lock with it, as happens when a process is killed."""
    begun = 0
    while (trial := of.take()) is not None:
        if begun == stop:
            del trial
            gc.collect()
            break
        with trial:
            trial.finish(value(trial.values))
        begun += 1
    return of.done()


def values(done: list[Done]) -> list[tuple[float, ...]]:
    return [tuple(one.values.values()) for one in done]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Done]:
    """The trials of a search that nothing interrupts."""
    return search(study(tmp_path_factory.mktemp("undisturbed"), 28))


def test_trials__new_allowed_and_on_the_grid(undisturbed: list[Done]) -> None:
    assert len(undisturbed) == len(set(values(undisturbed))) == 28
    assert all(allowed(one.values) for one in undisturbed)
    assert all(one.values in (DEM.grid or []) for one in undisturbed)
    assert [one.number for one in undisturbed] == list(range(28))


def test_trials__learn_from_earlier_ones(undisturbed: list[Done]) -> None:
    best = max(undisturbed, key=lambda one: one.accuracy or 0)
    assert best.accuracy == pytest.approx(0.8, abs=0.01)
    early, late = (float(np.mean([one.accuracy or 0 for one in part])) for part in (undisturbed[:10], undisturbed[14:]))
    assert late > early + 0.03


def test_trials__cut_off_search_goes_on_unchanged(tmp_path: Path, undisturbed: list[Done]) -> None:
    for trials, stop in ((13, 0), (13, 4), (13, 7)):  # the last of them learns already
        search(study(tmp_path, trials), stop=stop)
    assert search(study(tmp_path, 13)) == undisturbed[:13]


def test_trials__more_go_on_and_fewer_are_enough(tmp_path: Path, undisturbed: list[Done]) -> None:
    assert search(study(tmp_path, 3)) == undisturbed[:3]
    assert search(study(tmp_path, 5)) == undisturbed[:5]
    assert search(study(tmp_path, 2)) == undisturbed[:5]


def test_trials__first_is_given_seed_draws_the_rest(tmp_path: Path, undisturbed: list[Done]) -> None:
    first = {"objective.tau": 1.0, "objective.alpha": 1.0}
    one, other = (values(search(study(tmp_path / str(seed), 4, seed=seed, first=first))) for seed in (0, 1))
    assert one[0] == other[0] == (1.0, 1.0)
    assert one[1:] == values(undisturbed)[1:4]
    assert not set(one[1:]) & set(other[1:])


def test_progress__each_trial_once_though_one_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = study(tmp_path, 4)
    killed, other = of.take(), of.take()
    assert killed is not None
    assert other is not None
    with other:
        other.finish(0.5)
    del killed
    gc.collect()
    with Progress(4, of.done(), "here") as progress:
        search(of)
        progress.show(of.done())
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] == ["2/4", "3/4", "4/4"]


def test_grid__is_tried_up_to_its_end(tmp_path: Path) -> None:
    of = study(tmp_path, 500, SMALL)
    done = search(of)
    assert SMALL.grid is not None
    assert sorted(values(done)) == sorted(tuple(at.values()) for at in SMALL.grid)
    assert of.trials == len(SMALL.grid) == len(done)


def test_rate__is_searched_by_its_logarithm(tmp_path: Path) -> None:
    done = search(study(tmp_path, 20, RATE), lambda at: 1 - (math.log10(at["optimizer.lr"]) + 2) ** 2)
    rates = [one.values["optimizer.lr"] for one in done]
    assert all(1e-4 <= rate <= 0.1 and rate == float(f"{rate:.4g}") for rate in rates)
    assert max(done, key=lambda one: one.accuracy or 0).values["optimizer.lr"] == pytest.approx(0.01, rel=0.3)
    assert min(rates[:10]) < 1e-3 < max(rates[:10])


def test_space__nothing_allowed_off_a_grid_is_told(tmp_path: Path) -> None:
    of = study(tmp_path, 5, Space((Range("objective.tau", 0.0, 1.0),), lambda at: False))
    with raises_naming(ValueError, "search.space"):
        of.take()


def test_prune__gives_up_what_is_behind_the_median(tmp_path: Path) -> None:
    """The median is that of the trials that came as far."""
    of = study(tmp_path, 18, prune=0.5)
    given_up: list[float] = []
    so_far: list[float] = []
    while (trial := of.take()) is not None:
        with trial:
            now = 0.5 + 0.1 * math.cos(2 * len(so_far))
            # An easy beginning, which Optuna's own rule would take for the trial's best.
            assert not trial.report(1, 0.99)
            behind = trial.report(2, now)
            assert behind == (len(so_far) >= 10 and now < float(np.median(so_far)))
            so_far.append(now)
            if behind:
                trial.give_up()
                given_up.append(now)
            else:
                trial.finish(now)
    done = of.done()
    assert len(done) == 18  # those given up count
    assert 1 < len(given_up) == sum(one.accuracy is None for one in done)
    assert [one.so_far for one in done if one.accuracy is None] == given_up
    assert {one.seen for one in done} == {2}


def test_prune__zero_gives_up_nothing(tmp_path: Path) -> None:
    of = study(tmp_path, 13, prune=0)
    for number in range(13):
        trial = of.take()
        assert trial is not None
        with trial:
            assert not trial.report(1, -number)
            trial.finish(0.5)


def test_trial__that_diverges_or_fails(tmp_path: Path) -> None:
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


def test_configuration__another_one_is_refused(tmp_path: Path) -> None:
    search(study(tmp_path, 2))
    before = (tmp_path / "study.db").read_bytes()
    with raises_naming(ValueError, tmp_path, "search.dir") as caught:
        Study(tmp_path, {"stream": {"severity": 3}, "seed": 1, "new": [1]}, DEM, 0, 2)
    new, seed, severity = str(caught.value).split(";")[:3]  # what differs, by the names of the keys
    assert_names(new, "new", "[1]")
    assert_names(seed, "seed", "0", "1")
    assert_names(severity, "stream.severity", "5", "3")
    assert (tmp_path / "study.db").read_bytes() == before


@pytest.mark.parametrize("half", [False, True])
def test_file__broken_is_named(tmp_path: Path, half: bool) -> None:
    file = tmp_path / "study.db"
    content = b"no database at all, but long enough to be taken for one" * 20
    if half:
        search(study(tmp_path, 2))
        content = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(content)
    with raises_naming(OSError, file, "search.dir"):
        search(study(tmp_path, 5))


def test_folder__that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises_naming(OSError, "search.dir", tmp_path / "file" / "x"):
        study(tmp_path / "file" / "x")


# Several at work on one search: here two objects that share nothing but the files, below whole processes.


def test_workers__share_the_trials(tmp_path: Path) -> None:
    one, other = study(tmp_path, 7), study(tmp_path, 7)
    while (mine := one.take()) is not None and (theirs := other.take()) is not None:
        assert mine.values != theirs.values
        for trial in (theirs, mine):
            with trial:
                trial.finish(accuracy(trial.values))
        if len(one.done()) == 6:
            search(other)
    done = one.done()
    assert len(done) == len(set(values(done))) == 7
    assert other.done() == done


@pytest.mark.parametrize("killed", [False, True])
def test_workers__last_waits_for_what_others_are_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """If the other finishes there is nothing left to do; if it is killed, there is one trial more to do."""
    of = study(tmp_path, 2)
    others = [study(tmp_path, 2).take()]
    trial = of.take()
    assert trial is not None
    with trial:
        trial.finish(0.5)

    def meanwhile(_: float) -> None:
        """What happens while ``take`` waits."""
        theirs = others.pop()
        if theirs is not None and not killed:
            with theirs:
                theirs.finish(0.6)
        del theirs
        gc.collect()

    monkeypatch.setattr(study_module, "time", SimpleNamespace(sleep=meanwhile))
    again = of.take()
    assert others == []  # it waited
    if killed:
        assert again is not None
        assert again.values != trial.values
        with again:
            again.finish(0.7)
    else:
        assert again is None
    assert sorted(one.accuracy or 0 for one in of.done()) == [0.5, 0.7 if killed else 0.6]


def worker(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests")))}
    return subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_processes__share_the_trials_and_one_is_killed(tmp_path: Path) -> None:
    study(tmp_path, 24)
    workers = [worker(tmp_path) for _ in range(3)]
    victim = workers[0]
    assert victim.stdout is not None
    begun = [victim.stdout.readline() for _ in range(3)]  # the third is not finished
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    said = [other.communicate(timeout=120)[0] for other in workers[1:]]
    assert [other.returncode for other in workers[1:]] == [0, 0]
    done = study(tmp_path, 24).done()
    assert len(done) == len(set(values(done))) == 24
    assert all(one.accuracy == accuracy(one.values) for one in done)
    with victim.stdout as rest:
        lines = begun + list(rest) + [line for text in said for line in text.splitlines(keepends=True)]
    # Nothing was done twice, but for what the killed one was about.
    repeated = [line for line, times in Counter(lines).items() if times > 1]
    assert len(repeated) <= 1
    assert len(lines) - len(set(lines)) == len(repeated)


if __name__ == "__main__":  # a worker, that says what it begins
    work = study(Path(sys.argv[1]), 24)
    while (taken := work.take()) is not None:
        with taken:
            print(*taken.values.values(), flush=True)
            time.sleep(0.05)
            taken.finish(accuracy(taken.values))
