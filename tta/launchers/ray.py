"""Jobs of a sweep on Ray.

The plugin that there is for Hydra asks for an older cloudpickle and AWS's libraries, and gives up all jobs with one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # read when Ray is imported; or it keeps lines to itself that look alike

import ray
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


class Launch(Protocol):
    """What a launcher of Hydra holds."""

    init: Mapping[str, Any]
    remote: Mapping[str, Any]
    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig


def launch(launcher: Launch, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run jobs on the cluster of ``ray.init``, and return what they do, in order.

    A job that Ray gives up is a failed one, and the others go on.
    """
    setup_globals()
    own = not ray.is_initialized()
    if own:
        ray.init(**_plain(launcher.init))
    job = ray.remote(**_plain(launcher.remote))(_job)
    shared = (launcher.hydra_context, launcher.config, launcher.task_function, Singleton.get_state(), os.getcwd())
    tasks = [job.remote(*shared, list(words), number) for number, words in enumerate(job_overrides, first)]
    try:
        return [_returned(task) for task in tasks]
    finally:
        for task in tasks:  # when interrupted; of the others nothing is left to cancel
            ray.cancel(task, force=True)
        if own:
            ray.shutdown()


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for name, v in options.items()}


def _returned(task: Any) -> JobReturn:
    try:
        returned: JobReturn = ray.get(task)
    except ray.exceptions.RayError as error:
        returned = JobReturn(status=JobStatus.FAILED)
        returned.return_value = error
    return returned


def _job(
    hydra_context: HydraContext,
    config: DictConfig,
    task_function: TaskFunction,
    singletons: dict[Any, Any],
    folder: str,
    overrides: Sequence[str],
    number: int,
) -> JobReturn:
    """Run one job, in a process of Ray's, as Hydra's launchers do in theirs."""
    os.chdir(folder)  # Ray's processes begin elsewhere on another machine
    setup_globals()
    Singleton.set_state(singletons)
    job_config = hydra_context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(job_config):
        job_config.hydra.job.id = str(number)
        job_config.hydra.job.num = number
    HydraConfig.instance().set_config(job_config)
    return run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=job_config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
