"""From a configuration that Hydra has composed to the components of a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tta.utils.validation import ComponentError, check_bool, check_float, check_int

if TYPE_CHECKING:
    from tta.loggers import Logger

T = TypeVar("T")


def plain(node: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """Give a node of the configuration as plain containers.

    Args:
        node: with keys.
        resolve: put values in the place of interpolations; none may be missing then.

    Raises:
        MissingMandatoryValue: if one is.
    """
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve, throw_on_missing=resolve))


def instantiate(node: DictConfig, **kwargs: Any) -> Any:
    """Call what a node names as ``_target_``: the one call of Hydra's ``instantiate``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="hydra")
        return hydra.utils.instantiate(node, _convert_="all", **kwargs)


def build(config: DictConfig, group: str, kind: type[T], **kwargs: Any) -> T:
    """Build the component that a group of the configuration describes; its class may be the user's own.

    Raises:
        ComponentError: if it is of another kind, or a module in it was never initialised as one.
    """
    node = config[group]
    part = instantiate(node, **kwargs)
    if isinstance(part, kind):
        if (name := next(_not_initialised(part), None)) is not None:
            raise ComponentError(f"{group}: {name}.__init__ must begin with super().__init__(...)")
        return part
    wanted = f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}"
    if "_target_" not in node:
        raise ComponentError(
            f"{group}: the configuration names no _target_: give the class, or function, that makes a {wanted}"
        )
    raise ComponentError(
        f"{group}: {node._target_} must make a {wanted}, it gave {type(part).__name__}: return one from a function, or "
        "subclass it"
    )


def _not_initialised(part: Any) -> Iterator[str]:
    """Name the classes of modules, in a part, that hold nothing of what ``nn.Module`` is made of."""
    from torch import nn

    if isinstance(part, nn.Module):
        if "_modules" in vars(part):
            for module in part._modules.values():
                yield from _not_initialised(module)
        else:
            yield type(part).__name__


def build_loggers(config: DictConfig) -> list[Logger]:
    """Build the loggers; jobs that run beside each other show no progress bars."""
    from tta.loggers import Progress

    loggers = list(instantiate(config.logger).values())
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    if choices.get("hydra/launcher", "basic") in ("basic", None):
        return loggers
    return [logger for logger in loggers if not isinstance(logger, Progress)]


def check_values(config: DictConfig) -> None:
    """Check the values that no component checks, as they are passed to none.

    Raises:
        ValueError: if one is out of range.
    """
    check_int("seed", config.seed, 0)
    for key in ("compile", "force"):
        check_bool(key, config[key])
    if "lr" in config.optimizer:
        check_float("optimizer.lr", config.optimizer.lr, 0)


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
