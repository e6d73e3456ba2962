"""The module that every method is given: images in [0, 1] to logits, with the normalisation folded in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tta.streams.label_spaces import ClassSubset


class Backbone(nn.Module):
    """A classifier with its normalisation: images (N, 3, H, W) in [0, 1] to logits (N, C).

    Args:
        net: takes normalised images.
        num_classes: C, and so ``num_source_classes``, unless it is restricted to a part of them.
        mean: of each channel, in [0, 1]; ``None`` with ``std`` when ``net`` normalises by itself.
        std: of each channel.
        weights_id: which weights these are; it goes into every result.
    """

    mean: Tensor | None
    std: Tensor | None
    classes: Tensor | None

    has_random_weights = True
    """Whether its weights may hang on the seed of the run; weights that are read from a file do not."""

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        weights_id: str,
    ) -> None:
        super().__init__()
        self.net = net
        self.num_classes = self.num_source_classes = num_classes
        self.weights_id = weights_id
        self.register_buffer("mean", _channels("mean", mean), persistent=False)
        self.register_buffer("std", _channels("std", std), persistent=False)
        self.register_buffer("classes", None, persistent=False)

    def restrict_classes(self, classes: Tensor, total: int) -> None:
        """Give the logits of a part of the classes alone, so that whatever is made of them is about this part.

        The softmax, entropies and the number of classes are those of a network whose classifier has these rows only.

        Args:
            classes: int64 (C,), places among all classes, in the order that the logits are to have.
            total: how many classes there must be in all.

        Raises:
            ValueError: if the network has not so many, or is restricted already.
        """
        if self.num_source_classes != total or self.classes is not None:
            raise ValueError(
                f"{self.weights_id} has {self.num_classes} classes, it cannot be restricted to some of {total}"
            )
        self.classes = classes
        self.num_classes = len(classes)

    def match_classes(self, num_classes: int, subset: ClassSubset | None) -> None:
        """Restrict the logits to the classes of a stream, where those are a subset of the backbone's own.

        Args:
            num_classes: of the stream.
            subset: which of the source's classes they are; ``None`` if they are all.

        Raises:
            ValueError: if the backbone has neither these classes nor those that they are a subset of.
        """
        own = self.num_classes
        if own == num_classes:
            return
        if subset is not None and own == subset.num_source_classes:
            self.restrict_classes(subset.class_ids, subset.num_source_classes)
            return
        hint = ""
        if subset is None and num_classes < own:
            hint = (
                f"; or, if its labels are those of the model's {own} classes, of which not all occur, say so where the "
                f"stream takes it: stream.num_classes={own} for labels in a file, and for folders stream.classes=<text "
                "file with the name of a folder in each line>"
            )
        these = f"these classes, or for the {subset.num_source_classes} that they are of" if subset else "these classes"
        raise ValueError(
            f"the backbone {self.weights_id} has {own} classes, the stream has {num_classes}: "
            f"choose a model trained for {these} (model=..., model.checkpoint=...){hint}"
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalise and classify."""
        if self.mean is not None and self.std is not None:
            images = (images - _spread(self.mean, images)).div_(_spread(self.std, images))
        return self.select_classes(self.net(images))

    def select_classes(self, values: Tensor) -> Tensor:
        """Choose from values of all classes, (..., classes), those of the classes that there are."""
        return values if self.classes is None else values.index_select(-1, self.classes)

    @property
    def normalization(self) -> dict[str, list[float]] | None:
        """Mean and std of each channel as results record them, ``None`` when the network normalises by itself."""
        if self.mean is None or self.std is None:
            return None
        # A buffer is float32; rounding gives back the digits of the configuration.
        return {
            "mean": [round(v, 6) for v in self.mean.flatten().tolist()],
            "std": [round(v, 6) for v in self.std.flatten().tolist()],
        }


def _spread(values: Tensor, images: Tensor) -> Tensor:
    """Give the channels' values for each pixel of an image, in its memory format.

    A CPU is slow where it must repeat three values pixel after pixel.
    """
    if images.device.type != "cpu" or images.is_contiguous():
        return values
    return torch.empty_like(images[:1], dtype=values.dtype).copy_(values)


def _channels(name: str, values: Sequence[float] | None) -> Tensor | None:
    if values is None:
        return None
    if len(values) != 3:
        raise ValueError(f"model.{name} needs one value for each of the 3 channels, got {list(values)}")
    if not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
        raise ValueError(f"model.{name} is that of images in [0, 1], not of bytes: it cannot be {list(values)}")
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
