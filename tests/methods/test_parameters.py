"""Which parameters adapt: by layer and by pattern, on networks of every family."""

from __future__ import annotations

import functools
import warnings

import hydra
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.backbones import small_net
from helpers.compositions import composed
from helpers.errors import raises_naming
from tta.methods import ParameterChoice, Tent, norm_parameters
from tta.methods.common.parameters import NORM_BUT_LAST
from tta.models import Backbone
from tta.objectives import EM

SMALL_NORMS = ["body.1.weight", "body.1.bias", "body.4.weight", "body.4.bias"]


def test_choice__default_is_normalisation_layers() -> None:
    assert list(ParameterChoice()(small_net("batch"))) == SMALL_NORMS
    assert list(ParameterChoice()(small_net("layer"))) == [*SMALL_NORMS, "last.weight", "last.bias"]


def test_choice__all_is_every_parameter() -> None:
    net = small_net("batch")
    assert ParameterChoice(layers="all")(net) == dict(net.named_parameters())


def test_choice__names_are_those_of_the_network() -> None:
    """Whatever it is wrapped in."""
    net = small_net("batch")
    wrapped = Backbone(net, 5, [0.5] * 3, [0.5] * 3, "test")
    chosen = ParameterChoice(include=("body.1.*",))(wrapped)
    assert list(chosen) == SMALL_NORMS[:2]
    assert chosen["body.1.weight"] is net.get_submodule("body.1").weight


def test_choice__patterns_match_whole_names() -> None:
    net = small_net("layer")
    assert list(ParameterChoice(include=("*.weight",), exclude=("last.*",))(net)) == SMALL_NORMS[::2]
    assert list(ParameterChoice(exclude_if_present=("nowhere.*", "body.*"))(net)) == ["last.weight", "last.bias"]


@settings(max_examples=15)
@given(st.sets(st.sampled_from(SMALL_NORMS), min_size=1))
def test_choice__names_are_patterns(names: set[str]) -> None:
    assert set(ParameterChoice(include=tuple(names))(small_net("batch"))) == names


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_choice__pattern_without_a_match(key: str) -> None:
    """The error shows the names there are."""
    choice = ParameterChoice(include=("body.1",)) if key == "include" else ParameterChoice(exclude=("body.1",))
    with raises_naming(ValueError, f"method.adapt.{key}", "'body.1'", *SMALL_NORMS):
        choice(small_net("batch"))


def test_choice__nothing_left() -> None:
    with raises_naming(ValueError, "method.adapt", "['*']", *SMALL_NORMS):
        ParameterChoice(exclude=("*",))(small_net("batch"))


def test_choice__refuses_other_layers() -> None:
    with raises_naming(ValueError, "method.adapt.layers", "norm", "all", "'convolution'"):
        ParameterChoice(layers="convolution")


def test_tent__trains_what_was_chosen() -> None:
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    tent = Tent(small_net("layer"), EM(), sgd, adapt=ParameterChoice(exclude=("last.*",)))
    trained = [name.removeprefix("backbone.") for name, p in tent.named_parameters() if p.requires_grad]
    assert trained == SMALL_NORMS


FAMILIES = {
    "resnet18": nn.BatchNorm2d,
    "resnet50_gn": nn.GroupNorm,
    "vit_tiny_patch16_224": nn.LayerNorm,
    "convnext_atto": nn.LayerNorm,
    "efficientnet_lite0": nn.BatchNorm2d,
    "swin_tiny_patch4_window7_224": nn.LayerNorm,
}


@functools.cache
def family(name: str) -> nn.Module:
    large = name.startswith("resnet")  # names and kinds of layers are enough; weights take time
    with torch.device("meta" if large else "cpu"):
        return timm.create_model(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_choice__every_normalisation_layer_is_found(name: str) -> None:
    layers = [m for m in family(name).modules() if isinstance(m, FAMILIES[name])]
    assert len(norm_parameters(family(name))) == 2 * len(layers) > 0


@pytest.mark.parametrize(
    ("name", "left_out", "kept"),
    [
        ("resnet18", {"layer4.1.bn2.weight"}, {"layer3.1.bn2.weight"}),
        ("resnet50_gn", {"layer4.2.bn3.bias"}, {"layer3.5.bn3.bias"}),
        (
            "vit_tiny_patch16_224",
            {"blocks.9.norm1.weight", "norm.bias"},
            {"blocks.8.norm2.weight", "blocks.0.norm1.bias"},
        ),
    ],
)
def test_sar__leaves_the_last_layers_out(name: str, left_out: set[str], kept: set[str]) -> None:
    choice = hydra.utils.instantiate(composed("method=sar").method.adapt, _convert_="all")
    chosen = choice(family(name)).keys()
    assert left_out <= norm_parameters(family(name)).keys()
    assert not left_out & chosen
    assert kept <= chosen


def test_sar__last_layers_of_other_names() -> None:
    """There is a warning, unless they are excluded by name."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.warns(UserWarning, match=r"layer4\.\*.*method\.adapt\.exclude"):
        assert list(NORM_BUT_LAST(net)) == ["1.weight", "1.bias"]
    with warnings.catch_warnings(action="error"):
        NORM_BUT_LAST(family("resnet18"))
        ParameterChoice()(net)
        named = ParameterChoice(exclude=["*.bias"], exclude_if_present=NORM_BUT_LAST.exclude_if_present)
        assert list(named(net)) == ["1.weight"]
