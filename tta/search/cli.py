"""The command ``tta-search``; like ``tta.cli`` it sees a config object, and nothing below does."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from tta.cli import CONFIGS, command, past_hydra

if TYPE_CHECKING:
    from tta.search.study import Study
    from tta.search.trials import Evaluation


def main() -> None:
    """Entry point of ``tta-search``; exits with 1 after an error, 130 after Ctrl-C."""
    # A range may be new or change one that is there; Hydra would ask for a sign of which.
    sys.argv[1:] = [f"++{word}" if word.startswith("search.space.") else word for word in sys.argv[1:]]
    command("tta-search", _hydra_main, "search")


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="search")
def _hydra_main(config: DictConfig) -> None:
    with past_hydra():
        run(config)


def run(config: DictConfig) -> Path:
    """Search what the configuration says, or go on with it, and measure the result.

    Returns:
        The study's directory.
    """
    from tta.search import report
    from tta.search.prepare import checked, prepare
    from tta.search.result import measure, place, write_result

    options = checked(config)
    search = prepare(config)
    where = place(config, search)
    study = search.open()
    progress = report.Progress(study.trials, study.done(), str(study.folder))
    with progress:
        if options["workers"] == 1:
            work(study, search.evaluation, lambda: progress.show(study.done()))
        else:
            _share_out(config, options["workers"], lambda: progress.show(study.done()))
    done = study.done()
    best = report.best(done)
    with study.lock("result"):  # whoever comes second finds everything done
        origin = write_result(where, search, done, best)
        report.write_trials(study.folder / "trials.csv", search.space, done)
        report.plot(study.folder, search.space, done)
        measured = measure(search, where, best, origin)
        report.conclude(study.folder, search.title, search.first, done, measured)
    print(f"written: {where.file}; search.md, search.png, search.svg, trials.csv in {study.folder}")
    print(f"to use it: {where.command}")
    return study.folder


def work(study: Study, evaluation: Evaluation, show: Callable[[], None]) -> None:
    """Do trials until there are enough."""
    from tta.search.report import words
    from tta.search.trials import GivenUp

    parent = multiprocessing.parent_process()
    while (parent is None or parent.is_alive()) and (trial := study.take()) is not None:
        with trial:
            try:
                trial.finish(evaluation(trial.values, trial.report))
            except GivenUp:
                trial.give_up()
            except FloatingPointError:
                trial.give_up(diverged=True)
            except ValueError as error:
                raise ValueError(f"{words(trial.values)}: {error}") from error
        show()
    show()


def _share_out(config: DictConfig, workers: int, show: Callable[[], None]) -> None:
    """Let several processes do the trials, and show what becomes of them."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        known = OmegaConf.create({"hydra": HydraConfig.get()})
        running: list[Future[None]] = [pool.submit(_work_elsewhere, config, known, workers) for _ in range(workers)]
        try:
            while running:
                show()
                for future in [future for future in running if future.done()]:
                    running.remove(future)
                    future.result()
                time.sleep(0.2)
        except BrokenProcessPool as error:
            raise OSError("a worker was killed: the same command again goes on without loss") from error
    show()


def _work_elsewhere(config: DictConfig, known: DictConfig, workers: int) -> None:
    """Be one of several processes."""
    import torch

    from tta.search.prepare import prepare

    sys.path.insert(0, os.getcwd())
    setup_globals()
    HydraConfig.instance().set_config(known)
    torch.set_num_threads(max(torch.get_num_threads() // workers, 1))
    search = prepare(config)
    try:
        work(search.open(), search.evaluation, lambda: None)
    except InstantiationException as error:  # cannot be sent to another process
        raise ValueError(str(error.__cause__ or error)) from None
