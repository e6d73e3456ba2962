"""torch.compile makes a method's passes faster, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers.backbones import small_net, some_images
from tta.methods import BNAdapt, Method, Source, Tent
from tta.objectives import EM, AdaDEM
from tta.replicas.passes import packable

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "source": Source,
    "bn_adapt": BNAdapt,
    "em": lambda net: Tent(net, EM(), SGD),
    "adadem": lambda net: Tent(net, AdaDEM(), SGD),
}


@pytest.mark.parametrize("name", METHODS)
def test_compiled_methods_predict_and_learn_the_same(name: str) -> None:
    compiled, eager = METHODS[name](small_net("batch")), METHODS[name](small_net("batch"))
    compiled.compile(backend="aot_eager")
    assert (compiled.compiled, eager.compiled) == (True, False)
    images = some_images()
    for number in (len(images), len(images), 3, 5, len(images)):  # a last batch is smaller
        torch.testing.assert_close(compiled(images[:number]), eager(images[:number]), rtol=1e-5, atol=1e-6)
    compiled.reset()
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    torch.testing.assert_close(compiled(images), METHODS[name](small_net("batch"))(images), rtol=1e-5, atol=1e-6)


def test_compiled_methods_run_alone() -> None:
    net = small_net("batch")
    method = Tent(net, EM(), SGD)
    assert packable(method, net)
    method.compile(backend="aot_eager")
    assert not packable(method, net)


def test_passes_are_compiled() -> None:
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        seen.append(len(graph.graph.nodes))
        return graph

    method: Method = BNAdapt(small_net("batch"))
    method.compile(backend=backend)
    assert not seen
    method(some_images())
    assert len(seen) == 1  # one graph, without breaks
