"""Which parameters adapt: by layer and by pattern, on networks of every family."""

from __future__ import annotations

import functools
import warnings

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers.backbones import small_net
from tta.backbones import Backbone
from tta.methods import ParameterChoice, Tent, norm_parameters
from tta.methods.parameters import NORM_BUT_LAST
from tta.objectives import EM

SMALL_NORMS = ["body.1.weight", "body.1.bias", "body.4.weight", "body.4.bias"]


def test_the_default_is_scale_and_shift_of_normalisation_layers() -> None:
    assert list(ParameterChoice()(small_net("batch"))) == SMALL_NORMS
    assert list(ParameterChoice()(small_net("layer"))) == [*SMALL_NORMS, "last.weight", "last.bias"]


def test_all_is_every_parameter() -> None:
    net = small_net("batch")
    assert ParameterChoice(layers="all")(net) == dict(net.named_parameters())


def test_names_are_those_of_the_network_whatever_it_is_wrapped_in() -> None:
    net = small_net("batch")
    wrapped = Backbone(net, 5, [0.5] * 3, [0.5] * 3, "test")
    chosen = ParameterChoice(include=("body.1.*",))(wrapped)
    assert list(chosen) == SMALL_NORMS[:2]
    assert chosen["body.1.weight"] is net.get_submodule("body.1").weight


def test_include_and_exclude_take_patterns_of_whole_names() -> None:
    net = small_net("layer")
    assert list(ParameterChoice(include=("*.weight",), exclude=("last.*",))(net)) == SMALL_NORMS[::2]
    assert list(ParameterChoice(exclude_if_present=("nowhere.*", "body.*"))(net)) == ["last.weight", "last.bias"]


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_shows_the_names_there_are(key: str) -> None:
    choices = {"include": ParameterChoice(include=("body.1",)), "exclude": ParameterChoice(exclude=("body.1",))}
    message = rf"method.adapt.{key}: 'body.1' matches no parameter.*: body.1.weight, body.1.b"
    with pytest.raises(ValueError, match=message):
        choices[key](small_net("batch"))


def test_nothing_left_says_what_there_was() -> None:
    with pytest.raises(ValueError, match=r"leaves no parameter.*include=\['\*'\] without \['\*'\].*body.1.weight"):
        ParameterChoice(exclude=("*",))(small_net("batch"))


def test_another_kind_of_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method.adapt.layers must be one of norm, all; got 'convolution'"):
        ParameterChoice(layers="convolution")


def test_a_method_trains_what_was_chosen_and_nothing_else() -> None:
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    tent = Tent(small_net("layer"), EM(), sgd, adapt=ParameterChoice(exclude=("last.*",)))
    assert [name for name, p in tent.backbone.named_parameters() if p.requires_grad] == SMALL_NORMS


@given(st.sets(st.sampled_from(SMALL_NORMS), min_size=1))
def test_names_themselves_are_patterns(names: set[str]) -> None:
    assert set(ParameterChoice(include=tuple(names))(small_net("batch"))) == names


FAMILIES = {
    "resnet18": nn.BatchNorm2d,
    "resnet50_gn": nn.GroupNorm,
    "vit_tiny_patch16_224": nn.LayerNorm,
    "convnext_atto": nn.LayerNorm,
    "efficientnet_lite0": nn.BatchNorm2d,
    "mobilenetv3_small_050": nn.BatchNorm2d,
    "swin_tiny_patch4_window7_224": nn.LayerNorm,
}


@functools.cache
def family(name: str) -> nn.Module:
    return timm.create_model(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_normalisation_layer_of_a_family_is_found(name: str) -> None:
    layers = [m for m in family(name).modules() if isinstance(m, FAMILIES[name])]
    assert len(norm_parameters(family(name))) == 2 * len(layers) > 0


@pytest.mark.parametrize(
    ("name", "left_out", "kept"),
    [
        ("resnet18", "layer4.1.bn2.weight", "layer3.1.bn2.weight"),
        ("resnet50_gn", "layer4.2.bn3.bias", "layer3.5.bn3.bias"),
        ("vit_tiny_patch16_224", "blocks.9.norm1.weight", "blocks.8.norm2.weight"),
        ("vit_tiny_patch16_224", "norm.bias", "blocks.0.norm1.bias"),
    ],
)
def test_the_last_layers_of_sar_are_left_out(name: str, left_out: str, kept: str) -> None:
    import hydra

    from tta.cli import CONFIGS

    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose("adapt/norm_but_last")
    choice = hydra.utils.instantiate(config.adapt, _convert_="all")
    chosen = choice(family(name))
    assert left_out in norm_parameters(family(name))
    assert left_out not in chosen
    assert kept in chosen


def test_a_network_whose_last_layers_have_other_names_is_told() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.warns(UserWarning, match=r"no layer of this network is called layer4\.\*, .*method\.adapt\.exclude"):
        assert list(NORM_BUT_LAST(net)) == ["1.weight", "1.bias"]
    with warnings.catch_warnings(action="error"):
        NORM_BUT_LAST(family("resnet18"))
        ParameterChoice()(net)
        named = ParameterChoice(exclude=["*.bias"], exclude_if_present=NORM_BUT_LAST.exclude_if_present)
        assert list(named(net)) == ["1.weight"]
