"""Checkpoints: what a run that was killed continues from, to the same rows as if nothing had happened."""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tta.methods.base import Method
from tta.utils.devices import device_digest
from tta.utils.paths import atomic_file
from tta.utils.validation import check_int

MIN_COST_RATIO = 50
"""A domain that took less than so many times what saving takes is not worth it: saving costs 2 % of a run at most."""

State = dict[str, Any]


class Checkpoint:
    """The checkpoint of a run: one file, replaced as the run goes on.

    Its first line is JSON: the origin, and the checksum of the rest, which is what ``torch.save`` writes.

    Args:
        path: of the file, in the run's directory.
        origin: what determines the next row beside the state, see ``checkpoint_origin``. A checkpoint of another
            origin is not used.
        every: batches between two checkpoints within a domain; ``None`` saves between domains alone.

    Raises:
        ValueError: if ``every`` is no whole number.
    """

    def __init__(self, path: Path, origin: Mapping[str, str], every: int | None = None) -> None:
        self.path = path
        self.origin = dict(origin)
        self.every = None if every is None else check_int("checkpoint.every", every, 1)
        self.state: State | None = None
        self._cost = 0.0  # seconds, of the last saving
        self._saved_at = time.perf_counter()

    def load(self) -> None:
        """Load the saved state into ``state``; if it cannot be used, say why on stderr and leave ``state`` empty."""
        try:
            self.state = self._read()
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self.refuse(error)

    def refuse(self, reason: Exception) -> None:
        """Say on stderr why the checkpoint is not used, and leave ``state`` empty."""
        self.state = None
        print(f"checkpoint {self.path} is not used ({reason}): the run starts from the beginning", file=sys.stderr)

    def _read(self) -> State:
        content = self.path.read_bytes()
        header, _, payload = content.partition(b"\n")
        try:
            told = json.loads(header)
            whole = told["sha256"] == hashlib.sha256(payload).hexdigest()
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError("it is broken")
        if others := [key for key, value in self.origin.items() if told["origin"].get(key) != value]:
            raise ValueError(f"it is of another {' and another '.join(others)}")
        state: State = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        for name, size in state["files"].items():
            if (self.path.parent / f"{name}.csv").stat().st_size < size:
                raise ValueError(f"{name}.csv has lost rows")
        return state

    def is_due(self, number: int, starts_domain: bool) -> bool:
        """Whether to save before batch ``number``."""
        if self.every and number % self.every == 0:
            return True
        return starts_domain and time.perf_counter() - self._saved_at >= MIN_COST_RATIO * self._cost

    def save(self, state: State) -> None:
        """Replace the checkpoint.

        Raises:
            OSError: if it cannot be written.
        """
        began = time.perf_counter()
        payload = io.BytesIO()
        torch.save(state, payload)
        header = {"origin": self.origin, "sha256": hashlib.sha256(payload.getbuffer()).hexdigest()}
        with atomic_file(self.path) as file, file.open("wb") as out:
            out.write(json.dumps(header).encode() + b"\n")
            out.write(payload.getbuffer())
        self._saved_at = time.perf_counter()
        self._cost = self._saved_at - began


def method_state(method: Method) -> State:
    """Take the state of a method without the weights that never change."""
    frozen = _frozen(method)
    return {name: _by_itself(value) for name, value in method.state_dict().items() if name not in frozen}


def _by_itself(value: Any) -> Any:
    """A tensor without the rest of what it lies in, which would be saved with it."""
    part = isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes
    return value.clone() if part else value


def load_method_state(method: Method, state: State) -> None:
    """Continue from a state that ``method_state`` gave of a method made in the same way."""
    frozen = _frozen(method)
    same = {name: value for name, value in method.state_dict().items() if name in frozen}
    method.load_state_dict({**same, **state})


def _frozen(method: Method) -> set[str]:
    return {n for n, p in method.named_parameters() if n.startswith("backbone.") and not p.requires_grad}


def random_state(device: torch.device) -> State:
    """Take the state of the global generators: of torch, NumPy and Python."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what others may draw from
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: State, device: torch.device) -> None:
    """Put the global generators where ``random_state`` found them."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])


def checkpoint_origin(fingerprint: str, device: torch.device, method: Method, *others: object) -> dict[str, str]:
    """Name what a run computes its rows by: its fingerprint, the code (``others`` have some of it), and the device."""
    compiled = ", compiled" if method.compiled else ""
    code = code_digest(method, *others)
    return {"run": fingerprint, "code": code, "device": device_digest(device) + compiled}


def code_digest(*parts: object) -> str:
    """Name the code that a run is made by: this package, torch, timm, and the files of the classes of ``parts``."""
    content = hashlib.sha256(_package_digest().encode())
    kinds = {type(part) for part in parts} | {type(m) for p in parts if isinstance(p, Method) for m in p.modules()}
    for module in sorted({kind.__module__ for kind in kinds}):
        file = getattr(sys.modules.get(module), "__file__", None)
        content.update(Path(file).read_bytes() if file and Path(file).is_file() else b"")
    return content.hexdigest()[:16]


@cache
def _package_digest() -> str:
    import timm
    import torchvision

    versions = (sys.version, torch.__version__, torchvision.__version__, timm.__version__, np.__version__)
    content = hashlib.sha256(repr(versions).encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        content.update(file.read_bytes())
    return content.hexdigest()
