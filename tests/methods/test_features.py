"""What goes into the classifier, for the families of networks that a backbone can be."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from helpers.backbones import CLASSES, small_net, some_images
from helpers.errors import raises_naming
from tta.methods.common.features import class_vectors, classifier, logits_and_features
from tta.models import Backbone


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


# A classifier after pooling, after a token and a norm, and after one more linear layer.
@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "mobilenetv3_small_050"])
def test_features__are_what_timms_classifier_sees(name: str) -> None:
    net, images = net_and_images(name)
    assert_the_last_layer_makes_the_logits(net, images)
    assert logits_and_features(net, images)[1].shape == (2, net.head_hidden_size)


def test_features__are_what_ones_own_classifier_sees() -> None:
    assert_the_last_layer_makes_the_logits(small_net("layer").eval(), some_images())


def test_features__of_a_wrapped_network() -> None:
    net, images = net_and_images("resnet10t")
    wrapped = Backbone(net, CLASSES, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), weights_id="resnet10t").eval()
    assert classifier(wrapped) is net.fc
    assert_the_last_layer_makes_the_logits(wrapped, images)


def test_features__timms_word_goes_before_layer_order() -> None:
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


def test_features__leave_no_hook_behind() -> None:
    net = small_net("batch").eval()
    logits_and_features(net, some_images())
    assert not classifier(net)._forward_pre_hooks
    with pytest.raises(RuntimeError):
        logits_and_features(net, torch.rand(2, 7, 8, 8))
    assert not classifier(net)._forward_pre_hooks


def test_features__take_gradients_class_vectors_none() -> None:
    net = small_net("batch").eval()
    _, features = logits_and_features(net, some_images())
    assert features.requires_grad
    assert not class_vectors(net).requires_grad


def test_features__refuse_network_without_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten())
    with raises_naming(ValueError, "Sequential"):
        classifier(net)
    with raises_naming(ValueError, "Sequential"):
        logits_and_features(Backbone(net, CLASSES, None, None, "none"), some_images())


def test_features__refuse_classifier_of_feature_maps() -> None:
    class EveryPlace(nn.Module):
        """Classifies every place, and averages after it."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.permute(0, 2, 3, 1)).mean((1, 2))

    with raises_naming(ValueError, 8, (8, 8, 8, 3)):
        logits_and_features(EveryPlace(), some_images())


def test_features__refuse_classifier_that_is_not_used() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with raises_naming(ValueError, 8):
        logits_and_features(Unused(), some_images())


def test_features__refuse_linear_layer_not_of_logits() -> None:
    class Gated(nn.Module):
        """A linear layer inside, and logits by a convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(3, 3)
            self.head = nn.Conv2d(3, CLASSES, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.gate(x.mean((2, 3)))[:, :, None, None]).mean((2, 3))

    with raises_naming(ValueError, 3, CLASSES):
        logits_and_features(Gated(), some_images())
