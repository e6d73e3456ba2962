"""Methods on a part of the backbone's classes: as on a backbone whose classifier has these rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.all_methods import METHODS, make_method
from helpers.backbones import CLASSES, small_net, varied_images
from helpers.errors import raises_naming
from tta.methods import Method
from tta.methods.common.features import class_vectors, logits_and_features
from tta.models import Backbone

PART = torch.tensor([3, 0, 4])
SAME_DRAWS: dict[str, dict[str, Any]] = {
    # It draws a number for each weight, those of other rows too, and so augments its next batch in another way.
    "cotta": {"restore": 0, "confidence": 0},
}


def backbone(net: nn.Module, classes: int) -> Backbone:
    return Backbone(net, classes, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2), "net")


def restricted(kind: str = "batch") -> Backbone:
    made = backbone(small_net(kind), CLASSES)
    made.restrict_classes(PART, CLASSES)
    return made


def rows_alone() -> Backbone:
    net = small_net("batch")
    head = nn.Linear(net.head.in_features, len(PART))
    with torch.no_grad():
        head.weight.copy_(net.head.weight[PART])
        head.bias.copy_(net.head.bias[PART])
    net.head = head
    return backbone(net, len(PART))


def make(name: str, of: Backbone) -> Method:
    return make_method(name, of, lr=0.05, **SAME_DRAWS.get(name, {}))


def predictions(method: Method, size: int) -> torch.Tensor:
    return torch.stack([method(varied_images(size, seed)) for seed in range(4)])


@pytest.mark.usefixtures("demo_cache")
@pytest.mark.parametrize("name", METHODS)
def test_part__predicts_as_its_rows_alone(name: str, tmp_path: Path) -> None:
    size = 4 if name == "memo" else 16  # it takes its time for each image
    method = make(name, restricted())
    logits = predictions(method, size)
    assert logits.shape == (4, size, len(PART))
    torch.testing.assert_close(logits, predictions(make(name, rows_alone()), size), rtol=1e-3, atol=1e-3)
    method.reset()
    assert torch.equal(predictions(method, size), logits)
    # The part is the backbone's, and no part of what is saved.
    torch.save(method.state_dict(), tmp_path / "state.pt")
    expected = method(varied_images(size, 9))
    fresh = make(name, restricted())
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(varied_images(size, 9)), expected)


def test_part__is_learnt_from_alone() -> None:
    """Tent follows the entropy of the part, which is not that of all classes."""
    part = predictions(make("tent", restricted()), 16)
    all_classes = predictions(make("tent", backbone(small_net("batch"), CLASSES)), 16)
    torch.testing.assert_close(part[0], all_classes[0][:, PART])
    assert not torch.allclose(part[-1], all_classes[-1][:, PART], atol=1e-2)


def test_part__logits_features_and_class_vectors() -> None:
    whole, part, images = backbone(small_net("layer"), CLASSES).eval(), restricted("layer").eval(), varied_images()
    assert torch.equal(part(images), whole(images)[:, PART])
    assert (part.num_classes, part.num_source_classes, whole.num_classes) == (3, CLASSES, CLASSES)
    logits, features = logits_and_features(part, images)
    assert torch.equal(logits, part(images))
    assert torch.equal(features, logits_and_features(whole, images)[1])
    assert torch.equal(class_vectors(part), class_vectors(whole)[PART])


def test_part__of_other_classes_is_refused() -> None:
    with raises_naming(ValueError, "net", CLASSES, 1000):
        backbone(small_net("layer"), CLASSES).restrict_classes(PART, 1000)
    with raises_naming(ValueError, "net", 3, CLASSES):
        restricted().restrict_classes(PART, CLASSES)


def test_part__last_linear_layer_must_be_classifier() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.LayerNorm(7), nn.Softmax(-1))
    made = backbone(net, CLASSES)
    made.restrict_classes(PART, CLASSES)
    with raises_naming(ValueError, 7, CLASSES):
        logits_and_features(made, varied_images())


@pytest.mark.gpu
def test_part__works_on_gpu() -> None:
    method = make("t3a", restricted().cuda())
    assert method(varied_images().cuda()).shape == (8, 3)
