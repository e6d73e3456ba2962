"""Pretrained classifiers as modules that take images in [0, 1] and give logits.

The normalisation of the weights is folded in, so that no stream and no method has to know it.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tta.paths import cache_dir


class Backbone(nn.Module):
    """A classifier with its normalisation: images (N, 3, H, W) in [0, 1] to logits (N, C).

    Args:
        net: takes normalised images.
        num_classes: C, and so ``total_classes``, unless it is restricted to a part of them.
        mean: of each channel, in [0, 1]; ``None`` with ``std`` when ``net`` normalises by itself.
        std: of each channel.
        tag: which weights these are; it goes into every result.
    """

    mean: Tensor | None
    std: Tensor | None
    classes: Tensor | None

    seeded = True
    """Whether its weights may hang on the seed of the run; weights that are read from a file do not."""

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        tag: str,
    ) -> None:
        super().__init__()
        self.net = net
        self.num_classes = self.total_classes = num_classes
        self.tag = tag
        self.register_buffer("mean", _channels("mean", mean), persistent=False)
        self.register_buffer("std", _channels("std", std), persistent=False)
        self.register_buffer("classes", None, persistent=False)

    def restrict(self, classes: Tensor, total: int) -> None:
        """Give the logits of a part of the classes alone, so that whatever is made of them is about this part.

        The softmax, entropies and the number of classes are those of a network whose classifier has these rows only.

        Args:
            classes: int64 (C,), places among all classes, in the order that the logits are to have.
            total: how many classes there must be in all.

        Raises:
            ValueError: if the network has not so many, or is restricted already.
        """
        if self.total_classes != total or self.classes is not None:
            raise ValueError(f"{self.tag} has {self.num_classes} classes, it cannot be restricted to some of {total}")
        self.classes = classes
        self.num_classes = len(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise and classify."""
        if self.mean is not None and self.std is not None:
            images = (images - _spread(self.mean, images)).div_(_spread(self.std, images))
        return self.of_classes(self.net(images))

    def of_classes(self, values: Tensor) -> Tensor:
        """Choose from values of all classes, (..., classes), those of the classes that there are."""
        return values if self.classes is None else values.index_select(-1, self.classes)

    @property
    def normalization(self) -> dict[str, list[float]] | None:
        """Mean and std of each channel as results record them, ``None`` when the network normalises by itself."""
        if self.mean is None or self.std is None:
            return None
        # A buffer is float32; rounding gives back the digits of the configuration.
        return {
            "mean": [round(v, 6) for v in self.mean.flatten().tolist()],
            "std": [round(v, 6) for v in self.std.flatten().tolist()],
        }


def _spread(values: Tensor, images: Tensor) -> Tensor:
    """Give the channels' values for each pixel of an image, in its memory format.

    A CPU is slow where it must repeat three values pixel after pixel.
    """
    if images.device.type != "cpu" or images.is_contiguous():
        return values
    return torch.empty_like(images[:1], dtype=values.dtype).copy_(values)


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
    state = _read_checkpoint(file) if file else None
    if state is None and pretrained and stem:
        state = _pretrained_state(name)  # must be read apart: the model that timm would load them into has another stem
    load_by_timm = pretrained and state is None
    if not load_by_timm and state is None:
        warnings.warn(f"{name}: random weights (model.pretrained=false and no model.checkpoint)", stacklevel=2)
    net = _create(name, load_by_timm, num_classes, kwargs)
    if state is not None and num_classes is None and (found := _classes_in(state, net)) not in (None, net.num_classes):
        net = _create(name, load_by_timm, found, kwargs)
    if stem is not None:
        _replace_stem(net, stem)
    if state is not None:
        _load(net, state, str(checkpoint or name))
    settings = net.pretrained_cfg
    tag = f"{name}@{_digest(file)}" if file else name if load_by_timm or state else f"{name}@random"
    if load_by_timm and "." not in name and not _is_hub(name) and settings.get("tag"):
        tag = f"{name}.{settings['tag']}"  # the bare name's meaning has changed between timm versions
    if load_by_timm and net.num_classes != settings["num_classes"]:
        warnings.warn(
            f"{name}: random weights in the classifier (model.num_classes={net.num_classes}, but the pretrained "
            f"weights are for {settings['num_classes']} classes)",
            stacklevel=2,
        )
        tag += "@random-classifier"
    mean, std = settings["mean"] if mean is None else mean, settings["std"] if std is None else std
    backbone = Backbone(net, net.num_classes, mean, std, tag)
    backbone.seeded = "@random" in tag
    return backbone


def robustbench_backbone(
    name: str, dataset: str = "cifar10", threat_model: str = "corruptions", model_dir: str | None = None
) -> Backbone:
    """Load a model of RobustBench's zoo; it takes images in [0, 1] and normalises by itself where it must.

    Args:
        name: as in the zoo, e.g. ``Standard`` or ``Hendrycks2020AugMix_WRN``.
        dataset: ``cifar10``, ``cifar100`` or ``imagenet``.
        threat_model: ``corruptions``, ``corruptions_3d``, ``Linf`` or ``L2``.
        model_dir: where weights are kept; by default in the cache.

    Raises:
        ValueError: for an unknown name, data set or threat model, or weights that are none (a failed download).
        OSError: if the weights cannot be downloaded.
    """
    utils = import_robustbench("utils")
    dataset_key = _choice(utils.BenchmarkDataset, dataset, "model.dataset")
    threat_key = _choice(utils.ThreatModel, threat_model, "model.threat_model")
    # The 3D corruptions are another test set for the same models.
    group = utils.ThreatModel(threat_key.value.replace("_3d", ""))
    known = utils.all_models[dataset_key].get(group, {})
    if name not in known:
        there = ", ".join(sorted(known)) or "none"
        raise ValueError(f"RobustBench has no model {name!r} for {dataset} and {threat_model}; it has: {there}")
    root = Path(model_dir).expanduser() if model_dir else cache_dir() / "robustbench"
    root.mkdir(parents=True, exist_ok=True)
    path = root / dataset_key.value / group.value / f"{name}.pt"
    try:
        net = utils.load_model(name, model_dir=root, dataset=dataset_key, threat_model=threat_key)
    except Exception as error:  # of requests, gdown, pickle, torch
        if not path.is_file():
            raise OSError(
                f"RobustBench could not download {name!r} ({type(error).__name__}: {error}). Without a connection, "
                f"put its weights at {path}"
            ) from error
        _refuse_html(path)
        raise ValueError(
            f"RobustBench could not load {name!r} ({type(error).__name__}: {_first_line(error)}). If {path} are not "
            "its weights, delete the file and run again"
        ) from error
    tag = f"robustbench:{dataset}/{group.value}/{name}"
    backbone = Backbone(net, utils.DATASET_CLASSES[dataset_key], None, None, tag)
    backbone.seeded = False
    return backbone


def import_robustbench(module: str) -> Any:
    """Import ``robustbench.<module>``, the one place that knows what version 1.1.1 needs to be importable.

    It imports ``autoattack``, though the package it depends on is called ``pyautoattack``, and ``pkg_resources``, which
    announces its own end.
    """
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "autoattack" not in sys.modules:
            sys.modules["autoattack"] = importlib.import_module("pyautoattack")
        return importlib.import_module(f"robustbench.{module}")


def _channels(name: str, values: Sequence[float] | None) -> Tensor | None:
    if values is None:
        return None
    if len(values) != 3:
        raise ValueError(f"model.{name} needs one value for each of the 3 channels, got {list(values)}")
    if not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
        raise ValueError(f"model.{name} is that of images in [0, 1], not of bytes: it cannot be {list(values)}")
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)


def _choice(kinds: Any, value: str, key: str) -> Any:
    try:
        return kinds(value)
    except ValueError:
        raise ValueError(f"{key} must be one of {', '.join(kind.value for kind in kinds)}; got {value!r}") from None


def _refuse_html(path: Path) -> None:
    """Recognise the error page that a failed download leaves under the name of a checkpoint."""
    with path.open("rb") as file:
        head = file.read(256).lstrip()
    # Not any "<": the binary header of a .safetensors file can begin with one.
    if head.lower().startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml")):
        raise ValueError(
            f"{path} is not a checkpoint but a web page (it begins with {head[:20]!r}): the download failed. "
            "Delete it and download it again"
        )


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    if not path.is_file():
        raise FileNotFoundError(f"model.checkpoint: there is no file {path}")
    _refuse_html(path)
    try:
        state = load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"model.checkpoint: {path} is not a state dict that can be loaded safely (weights only; "
            f"{type(error).__name__}: {_first_line(error)}). Save the model's state_dict() alone, as .safetensors or "
            "with torch.save"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"model.checkpoint: {path} holds no state dict (a mapping of names to tensors)")
    return state


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
    except Exception as error:
        raise _creation_error(name, error, downloads=True) from error


def _is_hub(name: str) -> bool:
    return name.startswith(("hf_hub:", "hf-hub:"))


def _create(name: str, pretrained: bool, num_classes: int | None, kwargs: Mapping[str, Any] | None) -> Any:
    import timm

    # num_classes is passed only when known: a hub's configuration has its own.
    classes = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **classes, **(kwargs or {}))
    except Exception as error:
        raise _creation_error(name, error, downloads=pretrained or _is_hub(name)) from error


def _creation_error(name: str, error: Exception, downloads: bool) -> Exception:
    import difflib

    import timm

    text = f"{type(error).__name__}: {_first_line(error)}"
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


def _heads(net: nn.Module) -> list[str]:
    """Names of the weights whose rows are the classes."""
    heads = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return [f"{head}.weight" for head in ([heads] if isinstance(heads, str) else heads)]


def _classes_in(state: Mapping[str, Tensor], net: nn.Module) -> int | None:
    return next((len(state[name]) for name in _heads(net) if name in state), None)


def _load(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    own = net.state_dict()
    classes = _classes_in(state, net)
    expected = getattr(net, "num_classes", None)
    if classes is not None and classes != expected:
        raise ValueError(f"{source} has {classes} classes, but model.num_classes is {expected}: they must agree")
    problems = {
        "missing": [n for n in own if n not in state],
        "unexpected": [n for n in state if n not in own],
        "of another shape": [
            f"{n} {tuple(state[n].shape)} instead of {tuple(own[n].shape)}"
            for n in own
            if n in state and own[n].shape != state[n].shape
        ],
    }
    found = "; ".join(f"{kind}: {', '.join(names[:4])}" for kind, names in problems.items() if names)
    if found:
        raise ValueError(
            f"{source} does not fit {type(net).__name__} with {expected} classes: {found}. "
            "Check model.name, model.stem, model.kwargs and model.num_classes"
        )
    net.load_state_dict(state)


def _first_line(error: Exception) -> str:
    """The gist of torch's message of many lines, without its advice to load unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("Unsupported", "Trying", "size mismatch", "Missing"))]
    return (telling or lines or [""])[0].rstrip(".")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()[:12]
