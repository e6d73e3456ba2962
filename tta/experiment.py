"""One run, from its configuration to its summary."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tta.config.component_cache import ComponentCache, cache_for_sweep
from tta.config.instantiate import build, chosen_options, instantiate, plain, run_name
from tta.runs.directory import RunDirectory, fingerprint, provenance
from tta.runs.lock import run_lock
from tta.runs.sweep import JobStatus
from tta.utils.urls import redact
from tta.utils.validation import check_bool, check_float, check_int

if TYPE_CHECKING:
    import torch

    from tta.loggers import Logger
    from tta.methods import Method
    from tta.models import Backbone
    from tta.runner import Runner
    from tta.runs.checkpoint import Checkpoints
    from tta.streams import Scenario, Stream

T = TypeVar("T")


def run(config: DictConfig, command: Sequence[str]) -> JobStatus:
    """Run what the configuration says, unless it is finished already.

    Args:
        config: composed.
        command: that it came from.

    Returns:
        Whether it is ``done`` or ``skipped``, and where.

    Raises:
        RunLockedError: if another process runs it.
    """
    from tta.runner import Runner
    from tta.utils.devices import choose_device, choose_precision, tune_malloc

    _check(config)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if device.type == "cpu":
        tune_malloc()
    resolved = plain(config)
    parts = _make(config, resolved, device)
    stream, method = parts.stream, parts.method
    name = run_name(resolved, stream.subset)
    identity = fingerprint(resolved, parts.backbone.weights_id, stream.digest, method.data_digest)
    path = Path(config.runs_dir).expanduser() / f"{name}-{identity}"
    directory = RunDirectory(path)
    skipped = JobStatus("skipped", "finished before", str(path))
    if directory.finished and not config.force:
        print(f"{name}: finished already, see {path} (force=true runs it again)")
        directory.remove_leftovers()
        return skipped
    # Everything is made before the directory, so that a run that cannot start leaves nothing behind.
    stream.prepare()
    checkpoints = _checkpoints(directory, identity, parts, device, config.checkpoint.every)
    runner = Runner(
        method, stream, parts.scenario, config.seed, directory, _loggers(config), device, precision, checkpoints
    )
    origin = _origin(parts, device, command, resolved)
    with run_lock(path):
        if directory.finished and not config.force:
            print(f"{name}: another process has just finished it, see {path}")
            return skipped
        if not config.force:
            checkpoints.load(lambda text: print(f"{name}: {text}", file=sys.stderr))
        summary = _record(name, runner, origin)
    return _tell(name, summary, path)


def _check(config: DictConfig) -> None:
    """Check the values that go to no part of a run: a part checks its own."""
    check_int("seed", config.seed, 0)
    for key in ("compile", "force"):
        check_bool(key, config[key])
    if "lr" in config.optimizer:
        check_float("optimizer.lr", config.optimizer.lr, 0)


class _Parts(NamedTuple):
    """What a run is made of."""

    scenario: Scenario
    stream: Stream
    backbone: Backbone
    method: Method


def _make(config: DictConfig, resolved: Mapping[str, Any], device: torch.device) -> _Parts:
    """Make the parts, or take those that another job of the sweep has made."""
    import torch

    from tta.methods import Method
    from tta.models import Backbone
    from tta.streams import Scenario, Stream
    from tta.utils.devices import to_device

    torch.manual_seed(config.seed)
    torch.backends.cudnn.deterministic = True
    shared, scenario = _shared(), build(config, "scenario", Scenario)
    stream = shared.stream(resolved["stream"], lambda: build(config, "stream", Stream))

    def make() -> Backbone:
        backbone = build(config, "model", Backbone)
        match_classes(backbone, stream)
        return to_device(backbone, device)

    backbone = shared.backbone(resolved["model"], stream, device, config.seed, make)
    torch.manual_seed(config.seed)  # once more: what the method draws is the same, whether or not parts were made now
    method = build(config, "method", Method, backbone=backbone)  # type: ignore[type-abstract]
    if config.compile:
        method.compile()
    return _Parts(scenario, stream, backbone, method)


def _checkpoints(
    directory: RunDirectory, identity: str, parts: _Parts, device: torch.device, every: int | None
) -> Checkpoints:
    """Give the run's checkpoint; it serves the same run, code and device alone."""
    from tta.runs.checkpoint import Checkpoints, code_digest
    from tta.utils.devices import device_digest

    method = parts.method
    computed_by = device_digest(device) + ", compiled" * method.compiled
    made_by = {
        "run": identity,
        "code": code_digest(method, parts.stream, parts.scenario),
        "device": computed_by,
    }
    return Checkpoints(directory.checkpoint_path, made_by, every)


def _origin(parts: _Parts, device: torch.device, command: Sequence[str], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Say where a run's figures come from, as its summary records it."""
    from tta.utils.devices import describe_device

    return {
        "choices": chosen_options(),
        "weights": parts.backbone.weights_id,
        "normalization": parts.backbone.normalization,
        "data": parts.stream.digest,
        "subset": parts.stream.subset,
        "classes": parts.backbone.num_classes,
        "classes_of_the_backbone": parts.backbone.num_source_classes,
        "method_data": parts.method.data_digest or None,
        "reset": parts.scenario.reset,
        "device": describe_device(device),
        "compiled": parts.method.compiled,
        **provenance(command),
        "config": json.loads(redact(json.dumps(resolved))),
    }


def _shared() -> ComponentCache:
    """Parts that this job shares with others of its sweep in this process; none outside of sweeps."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ComponentCache()
    return cache_for_sweep(os.path.abspath(HydraConfig.get().sweep.dir))


def _tell(name: str, summary: Mapping[str, Any], path: Path) -> JobStatus:
    """Print what a run came to."""
    visits = summary["domains"]
    domains = len({(visit["domain"], visit["severity"]) for visit in visits})
    accuracy = f"{100 * summary['accuracy']:.2f} %"
    skipped = len(summary["skipped"])
    left_out = f" ({skipped} more could not be read: summary.json names them)" if skipped else ""
    print(
        f"{name}: accuracy {accuracy} over {domains} domain(s), "
        f"{f'{len(visits)} visits, ' if len(visits) > domains else ''}"
        f"{summary['images']} images{left_out} in {summary['seconds']:.0f} s -> {path}"
    )
    return JobStatus("done", accuracy, str(path), summary["accuracy"])


def _loggers(config: DictConfig) -> list[Logger]:
    """Make the loggers; jobs that run beside each other show no bars."""
    from tta.loggers import Progress

    loggers = list(instantiate(config.logger).values())
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    if choices.get("hydra/launcher", "basic") in ("basic", None):
        return loggers
    return [logger for logger in loggers if not isinstance(logger, Progress)]


def match_classes(backbone: Backbone, stream: Stream) -> None:
    """Restrict a backbone to the classes of the stream, where those are a part of its own.

    Raises:
        ValueError: if it has neither these classes nor those that they are a part of.
    """
    own, part = backbone.num_classes, stream.classes
    if own == stream.num_classes:
        return
    if part is None or own != part.num_source_classes:
        these = (
            f"these classes, or for the {part.num_source_classes} that they are of"
            if part is not None
            else "these classes"
        )
        raise ValueError(
            f"the backbone {backbone.weights_id} has {own} classes, the stream has {stream.num_classes}: "
            f"choose a model trained for {these} (model=..., model.checkpoint=...){_more_classes(stream, own)}"
        )
    backbone.restrict_classes(part.class_ids, part.num_source_classes)


def _more_classes(stream: Stream, own: int) -> str:
    """Say what to do where data are of the backbone's classes, but not of all."""
    if stream.classes is not None or stream.num_classes > own:
        return ""
    return (
        f"; or, if its labels are those of the model's {own} classes, of which not all occur, say so where the stream "
        f"takes it: stream.num_classes={own} for labels in a file, and for folders stream.classes=<text file with the "
        "name of a folder in each line>"
    )


def _record(name: str, runner: Runner, origin: dict[str, Any]) -> dict[str, Any]:
    """Run from the first batch, or from the checkpoint, to the summary, which is returned."""
    done = runner.prepare_resume()
    if done:
        print(f"{name}: goes on after {done} of {runner.images} images", file=sys.stderr)
    directory = runner.directory
    try:
        with ExitStack() as closing:
            for logger in runner.loggers:  # before the directory: one that cannot start costs no rows
                closing.callback(logger.close)
                logger.start(name, origin["config"], directory.path, runner.images, done)
            with directory:
                directory.write_config(OmegaConf.to_yaml(origin["config"]))
                summary = {"name": name, **runner.run(), **origin}
                directory.finish(summary)
            for logger in runner.loggers:
                logger.finish(summary)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; its rows so far are in {directory.path}", file=sys.stderr)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"the disk is full ({error}). The rows so far are in {directory.path}: make room, and the same command "
            "runs the rest"
        ) from error
    return summary
