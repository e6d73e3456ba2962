"""Which parameters of a backbone adapt."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from tta.methods.common.batch_norm import BlendedBatchNorm
from tta.models import Backbone

NORM_LAYERS = (_BatchNorm, BlendedBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _InstanceNorm)
NORM_NAMES = ("RMSNorm", "RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d")
"""Classes of other packages that are normalisation layers too, by name: which ones there are depends on the version."""
LAYERS = ("norm", "all")


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Scale and shift of every normalisation layer, by name (Tent, arXiv:2006.10726, section 3.2)."""
    return {
        f"{layer}.{name}" if layer else name: parameter
        for layer, module in model.named_modules()
        if isinstance(module, NORM_LAYERS) or any(kind.__name__ in NORM_NAMES for kind in type(module).__mro__)
        for name, parameter in module.named_parameters(recurse=False)
    }


@dataclass(frozen=True)
class ParameterChoice:
    """Chooses parameters by the kind of their layer and by their name.

    A pattern is a whole name with ``*`` for any characters, e.g. ``layer4.*``. Names are those of the network itself,
    whatever it is wrapped in.

    Args:
        layers: ``norm``, scale and shift of normalisation layers, or ``all``, every parameter.
        include: of these, take what matches one of the patterns.
        exclude: and leave out what matches one of these.
        exclude_if_present: the same, but a pattern may match nothing: for lists that serve several
            families of networks. Where none of them matches, and ``exclude`` names none, there is a warning.

    Raises:
        ValueError: for another kind of layers.
    """

    layers: str = "norm"
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    exclude_if_present: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.layers not in LAYERS:
            raise ValueError(f"method.adapt.layers must be one of {', '.join(LAYERS)}; got {self.layers!r}")

    def __call__(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Choose from a model.

        Returns:
            Parameters by name, in the model's order.

        Raises:
            ValueError: if a pattern matches nothing, or nothing is left.
        """
        net = model.net if isinstance(model, Backbone) else model
        there = norm_parameters(net) if self.layers == "norm" else dict(net.named_parameters())
        if not there:
            return {}
        for key, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in there):
                    raise ValueError(
                        f"method.adapt.{key}: {pattern!r} matches no parameter of the kind {self.layers!r} "
                        f"(a whole name, * for any characters); there are: {', '.join(there)}"
                    )
        others = self.exclude_if_present and not any(_matches(name, self.exclude_if_present) for name in there)
        if others and not self.exclude:
            warnings.warn(
                f"method.adapt: no layer of this network is called {', '.join(self.exclude_if_present)}, so none of "
                "the last ones is left out; name them with method.adapt.exclude=[...], or take all layers without "
                "this warning with adapt@method.adapt=norm",
                stacklevel=2,
            )
        left_out = (*self.exclude, *self.exclude_if_present)
        chosen = {name: p for name, p in there.items() if _matches(name, self.include) and not _matches(name, left_out)}
        if not chosen:
            raise ValueError(
                f"method.adapt leaves no parameter to adapt: include={list(self.include)} without {list(left_out)}; "
                f"there are: {', '.join(there)}"
            )
        return chosen


NORM_PARAMETERS = ParameterChoice()
"""Scale and shift of every normalisation layer."""
ALL_PARAMETERS = ParameterChoice("all")
"""Every parameter."""

NORM_BUT_LAST = ParameterChoice(exclude_if_present=("layer4.*", "blocks.9.*", "blocks.10.*", "blocks.11.*", "norm.*"))
"""The same, but for the last layers of ResNets and of a ViT-B: see configs/adapt/norm_but_last.yaml."""


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
