"""The command ``tta``: composes a configuration, makes the parts, runs. The only module that sees a config object."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from tta.checks import number, whole_number, yes_or_no
from tta.claims import TakenError, claim
from tta.parts import Shared, shared_in
from tta.replicas import pool
from tta.runs import RunDirectory, fingerprint, provenance
from tta.sweeps import Outcome, Record, SweepError, attempt

if TYPE_CHECKING:
    from tta.backbones import Backbone
    from tta.loggers import Logger
    from tta.runner import Runner, Steps
    from tta.streams import Stream

PACKAGE = Path(__file__).parent
# In a wheel the configurations are inside the package, in a checkout beside it.
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
# Hydra looks for plugins in the namespace package hydra_plugins alone; this is where ours has its share of it.
sys.path.append(str(PACKAGE / "plugins"))
# A launcher's configuration of ours has the name of its plugin's, which is its schema. That is meant, and Hydra warns.
# It does so in the launcher's processes too, which import this module before.
warnings.filterwarnings("ignore", "\n'hydra/launcher/", UserWarning)

EXPECTED = (
    HydraException, OmegaConfBaseException, ValueError, OSError, FloatingPointError, TakenError, SweepError,
)  # fmt: skip
"""Errors whose message is all that a user needs."""


def main() -> None:
    """Entry point of ``tta``; exits with 1 after an error, 130 after Ctrl-C."""
    command("tta", _hydra_main)


def command(program: str, hydra_main: Callable[[], None], config_name: str = "config") -> None:
    """Call a function that Hydra gives its configuration, and tell errors as a user wants to hear them."""
    # Classes of one's own are found in the current folder, as `python -m tta` does anyway.
    sys.path.insert(0, os.getcwd())
    debug = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on, instead of printing them with a trace
    try:
        if {"--help", "-h"} & set(sys.argv):
            _print_help(hydra_main)
        else:
            hydra_main()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except EXPECTED as error:
        if debug:
            raise
        raise SystemExit(f"{program}: error: {error_message(error, config_name)}") from None
    finally:
        if not debug:
            os.environ.pop("HYDRA_FULL_ERROR", None)  # or processes that the caller starts would take it for a wish


def _print_help(hydra_main: Callable[[], None]) -> None:
    """Print Hydra's help with its long lists wrapped, and without the groups that nobody chooses by hand."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        hydra_main()
    for line in text.getvalue().splitlines():
        if not line.startswith(("hparams/", "search:")):
            print(textwrap.fill(line, 100, subsequent_indent="    ") if len(line) > 100 else line)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
def _hydra_main(config: DictConfig) -> float:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a launcher's process has not come through main
    hydra_config = HydraConfig.get()
    record = Record(Path(hydra_config.sweep.dir))
    if hydra_config.mode != RunMode.MULTIRUN or not record.path.is_file():
        return run(config, sys.argv).accuracy

    def job() -> Steps[Outcome]:
        try:
            return (yield from steps(config, record.command))
        except TakenError as error:
            print(error)
            return Outcome("taken", error.owner, str(error.path))

    told = attempt(
        record, hydra_config.job.num, job, lambda error: error_message(error) if isinstance(error, EXPECTED) else ""
    )
    return pool.run(told, config.replicas, config.replica_pass)


def run(config: DictConfig, command: Sequence[str]) -> Outcome:
    """Run what the configuration says, unless it is finished already; see ``steps``."""
    from tta.runner import alone

    return alone(steps(config, command))


def steps(config: DictConfig, command: Sequence[str]) -> Steps[Outcome]:
    """Run what the configuration says, unless it is finished already, in turns that others may answer.

    The first turn says that all is made and nothing begun.

    Args:
        config: composed.
        command: that it came from.

    Returns:
        Whether it is ``done`` or ``skipped``, and where.

    Raises:
        TakenError: if another process runs it.
    """
    import torch

    from tta.checkpoints import Checkpoints, code_digest
    from tta.devices import choose_device, choose_precision, describe_device, device_digest, keep_memory, place
    from tta.runner import Runner, Turn

    whole_number("seed", config.seed, 0)
    for key in ("compile", "force"):
        yes_or_no(key, config[key])
    pool.check(config.replicas, config.replica_pass)
    if "lr" in config.optimizer:
        number("optimizer.lr", config.optimizer.lr, 0)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if device.type == "cpu":
        keep_memory()
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    torch.manual_seed(config.seed)
    torch.backends.cudnn.deterministic = True
    shared, scenario = _shared(), instantiate(config.scenario)
    stream = shared.stream(resolved["stream"], lambda: instantiate(config.stream))

    def make() -> Backbone:
        backbone: Backbone = instantiate(config.model)
        match_classes(backbone, stream)
        return place(backbone, device)

    backbone = shared.backbone(resolved["model"], stream, device, config.seed, make)
    torch.manual_seed(config.seed)  # once more: what the method draws is the same, whether or not parts were made now
    method = instantiate(config.method, backbone=backbone)
    if config.compile:
        method.compile()
    name = run_name(resolved, stream.subset)
    identity = fingerprint(resolved, backbone.tag, stream.digest, method.data)
    path = Path(config.runs_dir).expanduser() / f"{name}-{identity}"
    directory = RunDirectory(path)
    skipped = Outcome("skipped", "finished before", str(path))
    if directory.finished and not config.force:
        print(f"{name}: finished already, see {path} (force=true runs it again)")
        directory.tidy()
        return skipped
    # Everything is made before the directory, so that a run that cannot start leaves nothing behind.
    stream.prepare()
    computed_by = device_digest(device) + ", compiled" * method.compiled
    made_by = {"run": identity, "code": code_digest(method, stream, scenario), "device": computed_by}
    checkpoints = Checkpoints(directory.checkpoint_path, made_by, config.checkpoint.every)
    runner = Runner(method, stream, scenario, config.seed, directory, _loggers(config), device, precision, checkpoints)
    origin = {
        "choices": chosen_options(),
        **_parts(backbone, stream),
        "method_data": method.data or None,
        "reset": scenario.reset,
        "device": describe_device(device),
        "compiled": method.compiled,
        **provenance(command),
        "config": resolved,
    }
    yield Turn(runner, backbone=backbone)
    with claim(path):
        if directory.finished and not config.force:
            print(f"{name}: another process has just finished it, see {path}")
            return skipped
        if not config.force:
            checkpoints.load(lambda text: print(f"{name}: {text}", file=sys.stderr))
        summary = yield from _record(name, runner, origin)
    return _tell(name, summary, path)


def _parts(backbone: Backbone, stream: Stream) -> dict[str, Any]:
    """Say of backbone and stream what results record."""
    return {
        "weights": backbone.tag,
        "normalization": backbone.normalization,
        "data": stream.digest,
        "subset": stream.subset,
        "classes": backbone.num_classes,
        "classes_of_the_backbone": backbone.total_classes,
    }


def _shared() -> Shared:
    """Parts that this job shares with others of its sweep in this process; none outside of sweeps."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return Shared()
    return shared_in(os.path.abspath(HydraConfig.get().sweep.dir))


def _tell(name: str, summary: Mapping[str, Any], path: Path) -> Outcome:
    """Print what a run came to."""
    visits = summary["domains"]
    domains = len({(visit["domain"], visit["severity"]) for visit in visits})
    accuracy = f"{100 * summary['accuracy']:.2f} %"
    print(
        f"{name}: accuracy {accuracy} over {domains} domain(s), "
        f"{f'{len(visits)} visits, ' if len(visits) > domains else ''}"
        f"{summary['images']} images in {summary['seconds']:.0f} s -> {path}"
    )
    return Outcome("done", accuracy, str(path), summary["accuracy"])


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
    if part is None or own != part.total:
        these = f"these classes, or for the {part.total} that they are of" if part is not None else "these classes"
        raise ValueError(
            f"the backbone {backbone.tag} has {own} classes, the stream has {stream.num_classes}: "
            f"choose a model trained for {these} (model=..., model.checkpoint=...)"
        )
    backbone.restrict(part.places, part.total)


def _record(name: str, runner: Runner, origin: dict[str, Any]) -> Steps[dict[str, Any]]:
    """Run from the first batch, or from the checkpoint, to the summary, which is returned."""
    done = runner.prepare()
    if done:
        print(f"{name}: goes on after {done} of {runner.images} images", file=sys.stderr)
    with runner.directory as directory:
        directory.write_config(OmegaConf.to_yaml(origin["config"]))
        try:
            for logger in runner.loggers:
                logger.start(name, origin["config"], directory.path, runner.images, done)
            summary = {"name": name, **(yield from runner.steps()), **origin}
            directory.finish(summary)
            for logger in runner.loggers:
                logger.finish(summary)
        except KeyboardInterrupt:
            print(f"{name}: interrupted; its rows so far are in {directory.path}", file=sys.stderr)
            raise
        finally:
            for logger in runner.loggers:
                logger.close()
    return summary


def instantiate(node: DictConfig, **kwargs: Any) -> Any:
    """Make the part that a node describes: the one call of Hydra's ``instantiate``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="hydra")
        return hydra.utils.instantiate(node, _convert_="all", **kwargs)


def chosen_options() -> dict[str, str]:
    """The option taken of each group, as in ``{"method": "tent", ...}``."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return {group: option for group, option in choices.items() if option and not group.startswith("hydra/")}


def run_name(resolved: Mapping[str, Any], subset: str | None) -> str:
    """Readable part of the directory's name; the fingerprint behind it tells apart what this does not."""
    choices, method = chosen_options(), resolved["method"]
    parts = [choices.get(group, "custom") for group in ("stream", "scenario", "model", "method")]
    if subset is not None:
        parts[0] += f"-{subset}"
    if "objective" in method and choices.get("objective") != choices.get("method"):
        parts.append(choices.get("objective", "custom"))
    if "optimizer" in method:
        parts.append(f"lr{method['optimizer']['lr']}")
    return "_".join([*parts, f"seed{resolved['seed']}"]).replace("/", "-")


def error_message(error: Exception, config_name: str = "config") -> str:
    """The sentences meant for the user, without Hydra's and OmegaConf's wrapping."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        # Words of our own name the key; those of a library need its place.
        place = str(error).rpartition("full_key: ")[2] if isinstance(error.__cause__, TypeError) else ""
        if place and "unexpected keyword argument" in str(error.__cause__):
            hint = "leave it out; if you did not give it, another option did, as scenario=gradual gives stream.severity"
            return f"{place}: {error.__cause__} ({hint})"
        return f"{place}: {error.__cause__}" if place else str(error.__cause__)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is needed: give it with {error.full_key}=<value>"
    unknown = re.match(r"Could not override '([^']+)'", str(error))
    if unknown and "is not in struct" in str(error.__cause__):
        return f"there is no key {unknown[1]!r} in this configuration{_similar_keys(unknown[1], config_name)}"
    return str(error).partition("\nConfig search path:")[0]


def _similar_keys(key: str, config_name: str) -> str:
    """Say which keys of the configuration that was asked for look like ``key``."""
    groups = [word for word in sys.argv[1:] if "=" in word and "." not in word.partition("=")[0] and "," not in word]
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            config = hydra.compose(config_name, groups)
        except HydraException:  # another override is wrong too, and hides what there is
            config = hydra.compose(config_name)
    keys = list(dotted_keys(OmegaConf.to_container(config), ""))  # type: ignore[arg-type]
    close = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return (
        f"{hint} `tta --cfg job` shows all keys; a key that a model or a class of yours takes is added with +{key}=..."
    )


def dotted_keys(node: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """List the keys of nested mappings, as in ``optimizer.lr``."""
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{name}.")
