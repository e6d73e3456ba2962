"""Plain attributes of a method of one's own are state: reset and saved like parameters, and read from files as data."""

from __future__ import annotations

import collections
import functools
import io
import os
import pickle
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.backbones import small_net, some_images
from helpers.errors import raises_naming
from tta.methods import Method
from tta.methods.common.attributes import load_attributes, save_attributes
from tta.objectives import Objective
from tta.utils.validation import ComponentError


@dataclass
class Count:
    value: float = 0.0


class Counting(Objective):
    """An objective with an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def loss(self, logits: Tensor) -> Tensor:
        self.calls += 1
        return logits.mean(-1) * self.calls


def number(method: Any) -> float:
    method.state = 0.9 * method.state + 1
    return method.state


def appended(method: Any) -> float:
    method.state.append(len(method.state))
    return sum(method.state)


def entry(method: Any) -> float:
    method.state["count"] = method.state.get("count", 0) + 1
    return method.state["count"]


def added(method: Any) -> float:
    method.state.add(len(method.state))
    return len(method.state)


def pair(method: Any) -> float:
    method.state = (method.state[1], sum(method.state))
    return method.state[1]


def in_place(method: Any) -> float:
    method.state += 1
    return float(method.state.sum())


def drawn(method: Any) -> float:
    return method.state.random()


def counted(method: Any) -> float:
    method.state.value += 1
    return method.state.value


def made_later(method: Any) -> float:
    method.later = getattr(method, "later", 0) + 1
    return method.later


def called(method: Any) -> float:
    return float(method.state(torch.ones(1, 3)))


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "number": (lambda: 0.0, number),
    "list": (list, appended),
    "dict": (dict, entry),
    "set": (set, added),
    "tuple": (lambda: (1, 1), pair),
    "deque": (lambda: collections.deque(maxlen=3), appended),
    "array": (lambda: np.zeros((2, 3)), in_place),
    "tensor": (lambda: torch.zeros(3), in_place),
    "random": (lambda: random.Random(0), drawn),
    "numpy generator": (lambda: np.random.default_rng(0), drawn),
    "numpy random state": (lambda: np.random.RandomState(0), drawn),
    "dataclass": (Count, counted),
    "made later": (lambda: None, made_later),
    "objective": (Counting, called),
}


class Remembering(Method):
    """Its logits depend on what it keeps."""

    def __init__(self, kind: str) -> None:
        super().__init__(small_net("batch"))
        initial, self.change = KINDS[kind]
        self.state: Any = initial()
        self.thing: Any = None
        self.scale = nn.Parameter(torch.ones(()))
        self.listed = [self.scale]

    def step(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self.listed[0].add_(1)
        value: float = self.change(self)
        return self.predict(images) * self.scale + value


def predictions(method: Method, count: int = 3) -> Tensor:
    return torch.stack([method(some_images(4, seed)).detach() for seed in range(count)])


@pytest.mark.parametrize("kind", KINDS)
def test_attribute__is_reset(kind: str) -> None:
    method = Remembering(kind)
    first = predictions(method)
    assert not torch.equal(first[0], predictions(method, 1)[0])
    for _ in range(2):
        method.reset()
        assert torch.equal(predictions(method), first)
    assert method.listed[0] is method.scale


@pytest.mark.parametrize("kind", KINDS)
def test_attribute__is_saved(kind: str) -> None:
    method = Remembering(kind)
    first = predictions(method)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    expected = predictions(method)
    file.seek(0)
    fresh = Remembering(kind)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(predictions(fresh), expected)
    assert fresh.listed[0] is fresh.scale
    fresh.reset()
    assert torch.equal(predictions(fresh), first)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (threading.Lock(), "lock"),
        ([torch.Generator()], "Generator"),
        ([nn.Linear(1, 1)], "Linear"),
        ({"prompt": torch.zeros(1, requires_grad=True)}, "nn.Parameter"),
    ],
)
def test_attribute__that_cannot_be_copied_is_named(value: Any, named: str) -> None:
    method = Remembering("number")
    method.thing = value
    with raises_naming(ComponentError, "Remembering.thing", named):
        method(some_images(4))


def test_attribute__functions_are_left_alone() -> None:
    method = Remembering("number")
    method.thing = functools.partial(lambda value: value, 1)
    predictions(method)
    method.reset()
    assert method.thing() == 1


class Calls:
    """Pickled, it asks for a call when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.asked = (function, arguments)

    def __reduce__(self) -> Any:
        return self.asked


def named_call(name: bytes) -> bytes:
    """A pickle that calls what a module of the test's own has imported."""
    module = __name__.encode()
    return b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93(tR."


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"state": Calls(os.getcwd)}),
        pickle.dumps({"state": Calls(eval, "1 + 1")}),
        pickle.dumps({"state": Calls(torch.load, "file")}),
        pickle.dumps({"state": Calls(small_net, "batch")}),
        named_call(b"os.getcwd"),
        named_call(b"threading.Thread"),
    ],
)
def test_attribute__from_a_file_calls_nothing(content: bytes) -> None:
    saved = {"content": torch.frombuffer(bytearray(content), dtype=torch.uint8), "tensors": []}
    method = Remembering("number")
    with pytest.raises(pickle.UnpicklingError):
        load_attributes(method, saved, trusted=False)
    load_attributes(method, save_attributes(method), trusted=False)
