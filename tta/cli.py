"""The command ``tta``: Hydra composes a configuration, ``tta.experiment`` runs it, errors are shown to the user."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from tta.config.instantiate import plain
from tta.runs.jobs import JobStatus, SweepState, run_job
from tta.runs.lock import RunLockedError
from tta.runs.sweep import SweepError
from tta.utils.urls import redact
from tta.utils.validation import ComponentError

PACKAGE = Path(__file__).parent
# In a wheel the configurations are inside the package, in a checkout beside it.
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
# Hydra looks for plugins in the namespace package hydra_plugins alone; this is where ours has its share of it.
sys.path.append(str(PACKAGE / "plugins"))
_usual_format = warnings.formatwarning


def format_warning(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
    """Put a warning that is meant for users into a line, without the place in the code that it comes from."""
    if category is UserWarning:
        return f"tta: warning: {message}\n"
    return _usual_format(message, category, *where, **line)


# Both hold in a launcher's processes too, which import this module before anything can warn.
warnings.formatwarning = format_warning
# A launcher's configuration of ours has the name of its plugin's, which is its schema. That is meant, and Hydra warns.
warnings.filterwarnings("ignore", "\n'hydra/launcher/", UserWarning)

EXPECTED = (
    HydraException,
    OmegaConfBaseException,
    YAMLError,
    ValueError,
    OSError,
    FloatingPointError,
    ComponentError,
    RunLockedError,
    SweepError,
)
"""Errors whose message is all that a user needs."""


class CarriedError(BaseException):
    """Carries an error past Hydra, which would print the whole command, whatever secrets are in it, before it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def past_hydra() -> Iterator[None]:
    """Within a function that Hydra calls, hand on errors as ``CarriedError``, for ``command`` to tell."""
    try:
        yield
    except EXPECTED as error:
        raise CarriedError(error) from error


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
    except (CarriedError, *EXPECTED) as caught:
        error = caught.error if isinstance(caught, CarriedError) else caught
        if debug:
            raise error from None
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
    from tta.experiment import run_experiment

    hydra_config = HydraConfig.get()
    record = SweepState(Path(hydra_config.sweep.dir))
    if hydra_config.mode != RunMode.MULTIRUN or not record.path.is_file():
        with past_hydra():
            return run_experiment(config, sys.argv).accuracy

    def job() -> JobStatus:
        try:
            return run_experiment(config, record.command)
        except RunLockedError as error:
            print(error)
            return JobStatus("locked", error.owner, str(error.path))

    return run_job(
        record, hydra_config.job.num, job, lambda error: error_message(error) if isinstance(error, EXPECTED) else ""
    )


def error_message(error: Exception, config_name: str = "config") -> str:
    """The sentences meant for the user, without Hydra's and OmegaConf's wrapping, and without logins in URLs."""
    return redact(_sentences(error, config_name))


def _sentences(error: Exception, config_name: str) -> str:
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        # Words of our own name the key; those of a library need its place.
        place = str(error).rpartition("full_key: ")[2] if isinstance(error.__cause__, TypeError) else ""
        if place and "unexpected keyword argument" in str(error.__cause__):
            hint = "leave it out; if you did not give it, another option did, as scenario=gradual gives stream.severity"
            return f"{place}: {error.__cause__} ({hint})"
        text = f"{place}: {error.__cause__}" if place else str(error.__cause__)
        if re.search(r"Are you sure that module '.*' is installed\?$", text):
            text += f" Modules of your own are found in the current folder, {os.getcwd()}, and where PYTHONPATH says."
        return text
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
    keys = list(dotted_keys(plain(config, resolve=False), ""))
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
