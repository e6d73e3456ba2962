"""Features: what goes into a backbone's classifier."""

from __future__ import annotations

from torch import Tensor, nn

from tta.models import Backbone


def classifier(model: nn.Module) -> nn.Linear:
    """Return the linear layer that makes the logits: timm's own word for it, or else the last linear layer.

    Raises:
        ValueError: if there is none.
    """
    net = model.net if isinstance(model, Backbone) else model
    get_classifier = getattr(net, "get_classifier", None)
    own = get_classifier() if callable(get_classifier) else None
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    layer = own if isinstance(own, nn.Linear) else linear[-1] if linear else None
    if layer is None:
        raise ValueError(
            f"the method needs the features that a last linear layer turns into logits, but {type(net).__name__} has "
            "no linear layer: choose another model or method"
        )
    return layer


def logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Classify, and tell what went into the classifier: logits (N, C) and features (N, D).

    Raises:
        ValueError: if the classifier is no linear layer, does not see one vector for each image, or has not the
            classes of the logits.
    """
    seen: list[Tensor] = []
    layer = classifier(model)
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = model(images)
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0].ndim != 2 or len(seen[0]) != len(images):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in seen) or "nothing"
        raise ValueError(f"the classifier must see one vector for each of the {len(images)} images, it saw {shapes}")
    restricted = isinstance(model, Backbone) and model.classes is not None
    classes = model.num_source_classes if restricted else logits.shape[-1]
    if layer.out_features != classes:
        raise ValueError(
            f"the last linear layer gives {layer.out_features} values, but there are {classes} classes: it is not what "
            "makes the logits; choose another model or method"
        )
    return logits, seen[0]


def class_vectors(model: nn.Module) -> Tensor:
    """Return the classifier's weight, (C, D), without gradient."""
    return select_classes(model, classifier(model).weight.detach().T).T


def select_classes(model: nn.Module, values: Tensor) -> Tensor:
    """Choose from what the classifier makes for each class, (..., classes), what is of the backbone's classes."""
    return model.select_classes(values) if isinstance(model, Backbone) else values
