"""What goes into the classifier, for the families of networks that a backbone can be."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from helpers.backbones import CLASSES, small_net, some_images
from tta.backbones import Backbone
from tta.methods.features import class_vectors, classifier, logits_and_features


def net_and_images(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=CLASSES).eval()
        size = net.pretrained_cfg["input_size"][-1] if "vit" in name else 64
        return net, torch.rand(2, 3, size, size)


def assert_the_last_layer_makes_the_logits(net: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        logits, features = logits_and_features(net, images)
        assert torch.equal(logits, net(images))
        torch.testing.assert_close(classifier(net)(features), logits)
        vectors = class_vectors(net)
        assert vectors.shape == (CLASSES, features.shape[1])
        torch.testing.assert_close(features @ vectors.T + classifier(net).bias, logits)


@pytest.mark.parametrize(
    "name", ["resnet10t", "test_vit", "test_efficientnet", "convnext_atto", "mobilenetv3_small_050"]
)
def test_timm_networks(name: str) -> None:
    net, images = net_and_images(name)
    assert_the_last_layer_makes_the_logits(net, images)
    assert logits_and_features(net, images)[1].shape == (2, net.head_hidden_size)


@pytest.mark.parametrize("kind", ["batch", "layer", "group", "none"])
def test_a_network_of_ones_own(kind: str) -> None:
    assert_the_last_layer_makes_the_logits(small_net(kind).eval(), some_images())


def test_a_wrapped_network() -> None:
    net, images = net_and_images("resnet10t")
    wrapped = Backbone(net, CLASSES, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), tag="resnet10t").eval()
    assert classifier(wrapped) is net.fc
    assert_the_last_layer_makes_the_logits(wrapped, images)


def test_timms_word_goes_before_the_order_of_the_layers() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, CLASSES)
            self.other = nn.Linear(3, 2)

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mean((2, 3)))

    net = Two()
    assert classifier(net) is net.head


def test_the_model_is_left_as_it_was() -> None:
    net = small_net("batch").eval()
    logits_and_features(net, some_images())
    assert not classifier(net)._forward_pre_hooks
    with pytest.raises(RuntimeError):
        logits_and_features(net, torch.rand(2, 7, 8, 8))
    assert not classifier(net)._forward_pre_hooks


def test_features_take_gradients_and_class_vectors_none() -> None:
    net = small_net("batch").eval()
    _, features = logits_and_features(net, some_images())
    assert features.requires_grad
    assert not class_vectors(net).requires_grad


def test_a_network_without_a_linear_layer_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten())
    with pytest.raises(ValueError, match="Sequential has no linear layer: choose another model or method"):
        classifier(net)
    with pytest.raises(ValueError, match="but Sequential has no linear layer"):
        logits_and_features(Backbone(net, CLASSES, None, None, "none"), some_images())


def test_a_classifier_of_feature_maps_says_what_it_saw() -> None:
    class EveryPlace(nn.Module):
        """Classifies every place, and averages after it."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.permute(0, 2, 3, 1)).mean((1, 2))

    with pytest.raises(ValueError, match=r"one vector for each of the 8 images, it saw \(8, 8, 8, 3\)"):
        logits_and_features(EveryPlace(), some_images())


def test_a_classifier_that_is_not_used_says_so() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with pytest.raises(ValueError, match="one vector for each of the 8 images, it saw nothing"):
        logits_and_features(Unused(), some_images())


def test_a_last_linear_layer_that_does_not_make_the_logits_says_so() -> None:
    class Gated(nn.Module):
        """A linear layer inside, and logits by a convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(3, 3)
            self.head = nn.Conv2d(3, CLASSES, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.gate(x.mean((2, 3)))[:, :, None, None]).mean((2, 3))

    with pytest.raises(ValueError, match="the last linear layer gives 3 values, but there are 5 classes"):
        logits_and_features(Gated(), some_images())
