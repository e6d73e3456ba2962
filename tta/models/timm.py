"""Models of timm, with its pretrained weights or those of a checkpoint."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tta.models.backbone import Backbone
from tta.models.weights import classes_in, digest, first_line, load, read_checkpoint


def timm_backbone(
    name: str,
    pretrained: bool = True,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    stem: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """Make a timm model with pretrained weights, or those of a checkpoint.

    Args:
        name: model with its weights tag, e.g. ``resnet50.tv_in1k``, or ``hf_hub:<owner>/<repository>``.
        pretrained: take the weights that the name stands for. Ignored when there is a checkpoint.
        checkpoint: file with a state dict, ``.safetensors`` or ``.pt`` (loaded with ``weights_only``).
        num_classes: C; by default the weights' own.
        stem: ``cifar`` replaces a ResNet's first convolution by 3x3 with stride 1 and drops the max-pool.
        kwargs: passed on to ``timm.create_model``.
        mean: of each channel, in [0, 1]; by default from the weights' metadata.
        std: of each channel; by default from the weights' metadata.

    Raises:
        ValueError: for an unknown name, weights that do not fit, a file that is no checkpoint, half a normalisation.
        FileNotFoundError: if there is no such checkpoint.
        OSError: if the weights cannot be downloaded.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"model.mean and model.std go together, got mean={mean} and std={std}")
    file = Path(checkpoint).expanduser() if checkpoint else None
    state = read_checkpoint(file) if file else None
    if state is None and pretrained and stem:
        state = _pretrained_state(name)  # must be read apart: the model that timm would load them into has another stem
    by_timm = pretrained and state is None
    net = _create(name, by_timm, num_classes, kwargs)
    if state is not None and num_classes is None and (found := classes_in(state, net)) not in (None, net.num_classes):
        net = _create(name, by_timm, found, kwargs)
    if stem is not None:
        _replace_stem(net, stem)
    if state is not None:
        load(net, state, str(checkpoint or name))
        weights_id = f"{name}@{digest(file)}" if file else name
    else:
        weights_id = _weights_id(name, net, pretrained)
    settings = net.pretrained_cfg
    mean, std = settings["mean"] if mean is None else mean, settings["std"] if std is None else std
    backbone = Backbone(net, net.num_classes, mean, std, weights_id)
    backbone.has_random_weights = "@random" in weights_id
    return backbone


def _weights_id(name: str, net: Any, pretrained: bool) -> str:
    """Name the weights that timm has put into a network, and warn of those that are random."""
    if not pretrained:
        warnings.warn(f"{name}: random weights (model.pretrained=false and no model.checkpoint)", stacklevel=3)
        return f"{name}@random"
    settings, weights_id = net.pretrained_cfg, name
    if "." not in name and not _is_hub(name) and settings.get("tag"):
        weights_id = f"{name}.{settings['tag']}"  # the bare name's meaning has changed between timm versions
    if net.num_classes != settings["num_classes"]:
        warnings.warn(
            f"{name}: random weights in the classifier (model.num_classes={net.num_classes}, but the pretrained "
            f"weights are for {settings['num_classes']} classes)",
            stacklevel=3,
        )
        weights_id += "@random-classifier"
    return weights_id


def _pretrained_state(name: str) -> dict[str, Tensor]:
    """Weights of a hub repository whose architecture differs from what its configuration builds."""
    from timm.models import load_state_dict_from_hf

    if not _is_hub(name):
        raise ValueError(
            f"model.stem changes the network that the pretrained weights of {name} are for: give the weights of the "
            "changed network with model.checkpoint or an hf_hub: name, or model.pretrained=false for random ones"
        )
    try:
        return load_state_dict_from_hf(name.partition(":")[2], weights_only=True)
    except Exception as error:  # of timm, torch, the hub's client: told apart by what they say
        raise _creation_error(name, error, downloads=True) from error


def _is_hub(name: str) -> bool:
    return name.startswith(("hf_hub:", "hf-hub:"))


def _create(name: str, pretrained: bool, num_classes: int | None, kwargs: Mapping[str, Any] | None) -> Any:
    import timm

    # num_classes is passed only when known: a hub's configuration has its own.
    classes = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **classes, **(kwargs or {}))
    except Exception as error:  # of timm, torch, the hub's client: told apart by what they say
        raise _creation_error(name, error, downloads=pretrained or _is_hub(name)) from error


def _creation_error(name: str, error: Exception, downloads: bool) -> Exception:
    import timm

    text = f"{type(error).__name__}: {first_line(error)}"
    if not _is_hub(name) and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(pretrained=True) + timm.list_models(), n=5)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        return ValueError(f"timm {timm.__version__} has no model {name!r}{hint} (timm.list_models() lists them)")
    if "Invalid pretrained tag" in str(error) or "No pretrained weights exist" in str(error):
        there = ", ".join(timm.list_models(name.partition(".")[0] + ".*", pretrained=True))
        return ValueError(
            f"timm {timm.__version__} has no weights {name!r}; it has: {there or 'none, give model.checkpoint=<file>'}"
        )
    # A wrong keyword is the user's; anything else that goes wrong here is the network.
    if isinstance(error, TypeError | AssertionError) or "size mismatch" in str(error) or not downloads:
        return ValueError(f"timm cannot make {name!r}: {text}. Check model.name and model.kwargs")
    return OSError(
        f"the weights of {name!r} could not be loaded ({text}). Without a connection, download them elsewhere and "
        "give the file with model.checkpoint=<file>"
    )


def _replace_stem(net: nn.Module, stem: str) -> None:
    if stem != "cifar":
        raise ValueError(f"model.stem must be null or cifar, got {stem!r}")
    conv = getattr(net, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not hasattr(net, "maxpool"):
        raise ValueError(
            f"model.stem=cifar is for ResNets with one first convolution and a max-pool, not for {type(net).__name__}"
        )
    net.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=1, padding=1, bias=False)
    net.maxpool = nn.Identity()
