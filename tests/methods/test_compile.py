"""torch.compile makes a method's passes faster, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers.backbones import small_net, some_images
from tta.methods import BNAdapt, Method, Tent
from tta.objectives import AdaDEM

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "bn_adapt": BNAdapt,
    "adadem": lambda net: Tent(net, AdaDEM(), SGD),
}


@pytest.mark.parametrize("name", METHODS)
def test_compile__predicts_and_learns_the_same(name: str) -> None:
    compiled, eager = METHODS[name](small_net("batch")), METHODS[name](small_net("batch"))
    compiled.compile(backend="aot_eager")
    assert (compiled.compiled, eager.compiled) == (True, False)
    images = some_images()
    for number in (len(images), len(images), 3, 5, len(images)):  # a last batch is smaller
        torch.testing.assert_close(compiled(images[:number]), eager(images[:number]), rtol=1e-5, atol=1e-6)
    compiled.reset()
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    torch.testing.assert_close(compiled(images), METHODS[name](small_net("batch"))(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_compile__makes_one_graph(name: str) -> None:
    """Without breaks, and not before the first batch."""
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        seen.append(len(graph.graph.nodes))
        return graph

    method = METHODS[name](small_net("batch"))
    method.compile(backend=backend, fullgraph=True)
    assert not seen
    method(some_images())
    assert len(seen) == 1
