"""Weights in a file: read safely, and put into a network that they fit, or refused in words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from tta.utils.validation import is_web_page


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict, and nothing that could run code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    from timm.models import load_state_dict

    if not path.is_file():
        raise FileNotFoundError(f"model.checkpoint: there is no file {path}")
    refuse_html(path)
    try:
        state = load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # of pickle, zip, torch, safetensors: whatever the file makes of their readers
        raise ValueError(
            f"model.checkpoint: {path} is not a state dict that can be loaded safely (weights only; "
            f"{type(error).__name__}: {first_line(error)}). Save the model's state_dict() alone, as .safetensors or "
            "with torch.save"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"model.checkpoint: {path} holds no state dict (a mapping of names to tensors)")
    return state


def refuse_html(path: Path) -> None:
    """Recognise the error page that a failed download leaves under the name of a checkpoint."""
    with path.open("rb") as file:
        head = file.read(256).lstrip()
    if is_web_page(head):
        raise ValueError(
            f"{path} is not a checkpoint but a web page (it begins with {head[:20]!r}): the download failed. "
            "Delete it and download it again"
        )


def load(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a network that has exactly these.

    Args:
        net: the network.
        state: its weights, by name.
        source: what to call them in a message.

    Raises:
        ValueError: if they do not fit; says where.
    """
    own = net.state_dict()
    classes = classes_in(state, net)
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


def classes_in(state: Mapping[str, Tensor], net: nn.Module) -> int | None:
    """How many classes weights are for, by the classifier that the network has; ``None`` if they have none."""
    return next((len(state[name]) for name in _heads(net) if name in state), None)


def _heads(net: nn.Module) -> list[str]:
    """Names of the weights whose rows are the classes."""
    heads = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return [f"{head}.weight" for head in ([heads] if isinstance(heads, str) else heads)]


def digest(path: Path) -> str:
    """Name the content of a file, in 12 hexadecimal digits."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()[:12]


def first_line(error: Exception) -> str:
    """The gist of torch's message of many lines, without its advice to load unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("Unsupported", "Trying", "size mismatch", "Missing"))]
    return (telling or lines or [""])[0].rstrip(".")
