"""One experiment: from its configuration to its summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from tta.config.component_cache import component_cache
from tta.config.instantiate import build, build_loggers, check_values, chosen_options, plain, run_name
from tta.methods.base import Method
from tta.recorder import describe
from tta.runner import Runner
from tta.runs.checkpoint import Checkpoint, checkpoint_origin
from tta.runs.directory import RunDirectory
from tta.runs.fingerprint import fingerprint
from tta.runs.jobs import JobStatus
from tta.runs.lock import run_lock
from tta.runs.provenance import provenance
from tta.streams import Scenario
from tta.utils.devices import choose_device, choose_precision, tune_malloc


def run_experiment(config: DictConfig, command: Sequence[str]) -> JobStatus:
    """Run what a configuration describes, unless it is finished already.

    Args:
        config: composed by Hydra.
        command: the words it came from.

    Returns:
        Whether the run is ``done`` or was ``skipped``, and its directory.

    Raises:
        RunLockedError: if another process runs it.
    """
    check_values(config)
    resolved, seed = plain(config), config.seed
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if device.type == "cpu":
        tune_malloc()
    torch.backends.cudnn.deterministic = True

    # Everything is built before the directory is made: a run that cannot start leaves nothing behind.
    torch.manual_seed(seed)
    cache = component_cache()
    scenario = build(config, "scenario", Scenario)
    stream = cache.stream(config)
    backbone = cache.backbone(config, stream, device)
    torch.manual_seed(seed)  # again: a method draws the same, whether or not the backbone came from the cache
    method = build(config, "method", Method, backbone=backbone)  # type: ignore[type-abstract]
    if config.compile:
        method.compile()

    name = run_name(resolved, stream.subset)
    run_id = fingerprint(resolved, backbone.weights_id, stream.digest, method.data_digest)
    directory = RunDirectory(Path(config.runs_dir).expanduser() / f"{name}-{run_id}")
    skipped = JobStatus("skipped", "finished before", str(directory.path))
    if directory.finished and not config.force:
        print(f"{name}: finished already, see {directory.path} (force=true runs it again)")
        directory.remove_leftovers()
        return skipped

    stream.prepare()
    origin = checkpoint_origin(run_id, device, method, stream, scenario)
    checkpoint = Checkpoint(directory.checkpoint_path, origin, config.checkpoint.every)
    sources = provenance(command, resolved, backbone, stream, scenario, method, device)
    metadata = {"name": name, "choices": chosen_options(), **sources}
    loggers = build_loggers(config)
    runner = Runner(method, stream, scenario, seed, directory, loggers, device, precision, checkpoint, metadata)
    with run_lock(directory.path):
        if directory.finished and not config.force:
            print(f"{name}: another process has just finished it, see {directory.path}")
            return skipped
        if not config.force:
            checkpoint.load()
        summary = runner.run()
    print(f"{name}: {describe(summary)} -> {directory.path}")
    return JobStatus("done", f"{100 * summary['accuracy']:.2f} %", str(directory.path), summary["accuracy"])
