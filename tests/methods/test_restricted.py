"""Every method on a part of the backbone's classes: as on a backbone whose classifier has these rows alone."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
import torch
from torch import nn

from helpers.backbones import CLASSES, small_net, varied_images
from helpers.compositions import composed
from tta.backbones import Backbone
from tta.cli import CONFIGS
from tta.methods import Method
from tta.methods.features import class_vectors, logits_and_features

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
KINDS = ("batch", "layer", "group")
PART = torch.tensor([3, 0, 4])
SAME_DRAWS = {
    "memo": ("method.augmentations=2",),  # quick enough
    # It draws a number for each weight, those of other rows too, and so augments its next batch in another way.
    "cotta": ("method.restore=0", "method.confidence=0"),
}


def backbone(net: nn.Module, classes: int) -> Backbone:
    return Backbone(net, classes, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), "net")


def restricted(kind: str) -> Backbone:
    made = backbone(small_net(kind), CLASSES)
    made.restrict(PART, CLASSES)
    return made


def rows_alone(kind: str) -> Backbone:
    net = small_net(kind)
    head = nn.Linear(net.head.in_features, len(PART))
    with torch.no_grad():
        head.weight.copy_(net.head.weight[PART])
        head.bias.copy_(net.head.bias[PART])
    net.head = head
    return backbone(net, len(PART))


def make(name: str, of: Backbone) -> Method:
    config = composed(f"method={name}", "optimizer.lr=0.05", *SAME_DRAWS.get(name, ()))
    return hydra.utils.instantiate(config.method, backbone=of, _convert_="all")


def predictions(method: Method) -> torch.Tensor:
    return torch.stack([method(varied_images(16, seed)) for seed in range(5)])


@pytest.mark.usefixtures("demo_cache")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_as_with_a_classifier_of_these_rows_alone(name: str, kind: str, tmp_path: Path) -> None:
    method = make(name, restricted(kind))
    logits = predictions(method)
    assert logits.shape == (5, 16, len(PART))
    torch.testing.assert_close(logits, predictions(make(name, rows_alone(kind))), rtol=1e-3, atol=1e-3)
    method.reset()
    assert torch.equal(predictions(method), logits)
    # The part is the backbone's, not of what is saved.
    torch.save(method.state_dict(), tmp_path / "state.pt")
    expected = method(varied_images(16, 9))
    fresh = make(name, restricted(kind))
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(varied_images(16, 9)), expected)


def test_it_is_not_what_all_classes_come_to() -> None:
    """Tent on the part learns from the entropy of the part: something else than Tent on all, of which the part is."""
    part = predictions(make("tent", restricted("batch")))
    all_classes = predictions(make("tent", backbone(small_net("batch"), CLASSES)))
    torch.testing.assert_close(part[0], all_classes[0][:, PART])
    assert not torch.allclose(part[-1], all_classes[-1][:, PART], atol=1e-2)


def test_logits_features_and_vectors() -> None:
    whole, part, images = backbone(small_net("layer"), CLASSES).eval(), restricted("layer").eval(), varied_images()
    assert torch.equal(part(images), whole(images)[:, PART])
    assert (part.num_classes, part.total_classes, whole.num_classes) == (3, CLASSES, CLASSES)
    logits, features = logits_and_features(part, images)
    assert torch.equal(logits, part(images))
    assert torch.equal(features, logits_and_features(whole, images)[1])
    assert torch.equal(class_vectors(part), class_vectors(whole)[PART])


@pytest.mark.parametrize("total", [3, 1000])
def test_a_part_of_something_else(total: int) -> None:
    with pytest.raises(ValueError, match=f"net has 5 classes, it cannot be restricted to some of {total}"):
        backbone(small_net("layer"), CLASSES).restrict(PART, total)
    with pytest.raises(ValueError, match="net has 3 classes, it cannot be restricted to some of 5"):
        restricted("layer").restrict(PART, CLASSES)


def test_a_last_linear_layer_that_is_not_the_classifier() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.LayerNorm(7), nn.Softmax(-1))
    made = backbone(net, CLASSES)
    made.restrict(PART, CLASSES)
    with pytest.raises(ValueError, match="last linear layer gives 7 values, but there are 5 classes"):
        logits_and_features(made, varied_images())


@pytest.mark.gpu
def test_on_the_gpu() -> None:
    method = make("t3a", restricted("batch").cuda())
    assert method(varied_images().cuda()).shape == (8, 3)
