"""What Hydra finds of ``tta`` among its plugins; it looks nowhere but in this namespace, and imports all of it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ReportingSweeper(BasicSweeper):
    """Hydra's own sweeper, that knows at the end what became of each job."""

    config: DictConfig
    launcher: Any

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher.

        Raises:
            ValueError: if what it needs is not installed.
        """
        try:
            super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        except (ImportError, RuntimeError) as error:
            name = config.hydra.runtime.choices["hydra/launcher"]
            reason = str(error).partition("\n")[0].strip()
            raise ValueError(
                f"hydra/launcher={name} needs packages that are not there ({reason}): pip install "
                f"'tta[{name.partition('_')[0]}]'"
            ) from error
        if isinstance(self.launcher, BasicLauncher):
            once: Any = _ComposedOnce(hydra_context.config_loader)
            self.hydra_context = self.launcher.hydra_context = HydraContext(once, hydra_context.callbacks)

    def sweep(self, arguments: list[str]) -> Any:
        """Run all combinations, and print a table of them.

        Raises:
            SweepError: if not all are done.
        """
        from tta.runs.sweep import run_sweep

        with run_sweep(Path(self.config.hydra.sweep.dir), self.launcher.launch) as sweep:
            self.launcher = _Recorded(sweep, Path(self.config.hydra.sweep.dir))
            super().sweep(arguments)


class _ComposedOnce:
    """In place of Hydra's loader, which composes a job when the sweep is checked, and again when the job runs here.

    A job's configuration takes a tenth of a second to compose; pickled, it is 20 kB and there in a millisecond.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._composed: dict[tuple[str, ...], bytes] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        words = tuple(sweep_overrides)
        if words not in self._composed:
            self._composed[words] = pickle.dumps(self._loader.load_sweep_config(master_config, list(words)))
        config: DictConfig = pickle.loads(self._composed[words])
        return config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Recorded:
    """In place of the launcher: the sweep's record is asked for results, not the launcher."""

    def __init__(self, sweep: Any, folder: Path) -> None:
        self.sweep = sweep
        self.folder = folder

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Hydra's copy of the command has its secrets too; what is kept of it is in the sweep's record.
        (self.folder / "multirun.yaml").unlink(missing_ok=True)
        self.sweep.launch(job_overrides)
        return []


class RayLauncher(Launcher):
    """Jobs as tasks of Ray; one whose process or machine dies is run again by Ray, and goes on from its checkpoint.

    Args:
        init: options of ``ray.init``.
        remote: options of ``ray.remote``: what a job takes (``num_cpus``, ``num_gpus``), ``max_retries`` ...
    """

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any]) -> None:
        self.init = dict(init)
        self.remote = dict(remote)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what ``launch`` needs.

        Raises:
            ImportError: if there is no Ray.
        """
        if find_spec("ray") is None:
            raise ImportError("No module named 'ray'")
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs, as many at once as there is room for."""
        from tta.launchers.ray import launch

        return launch(self, job_overrides, initial_job_idx)
