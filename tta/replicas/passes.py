"""One forward and backward pass for several methods whose backbones differ in their normalisation layers alone.

The convolutions and attention of a backbone are frozen, so that the images of all replicas go through them as one
batch. Normalisation layers keep statistics, scale and shift for each replica.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tta.methods.base import Method, gradients
from tta.methods.onepass import Loss, OnePass
from tta.methods.parameters import NORM_LAYERS
from tta.replicas.norms import Joined, Layout
from tta.replicas.objectives import each_of

FAR = {False: 0.01, True: 0.1}
"""Logits that differ by more than this share of their length do not differ by rounding; without and with autocast."""


def packable(method: Method, backbone: nn.Module) -> bool:
    """Whether the passes of a method can be shared with others that were made from the same backbone."""
    if not isinstance(method, OnePass) or not method.simple or method.compiled or method.captured:
        return False
    if _kinds(method.backbone) != _kinds(backbone):
        return False
    return all(isinstance(module, NORM_LAYERS) for module in method.backbone.modules() if _adapts(module))


def likeness(method: Method) -> tuple[bool, bool]:
    """What methods in one pass have to agree in: whether they learn, and from where BatchNorm takes its statistics."""
    norms = [module for module in method.backbone.modules() if isinstance(module, _BatchNorm)]
    return getattr(method, "optimizer", None) is not None, any(map(_of_the_batch, norms))


def share_frozen(method: Method, backbone: nn.Module) -> None:
    """Let a method use the frozen weights of the backbone that it was made from, in the place of copies of its own."""
    for name, parameter in method.backbone.named_parameters():
        if not parameter.requires_grad:
            parameter.data = backbone.get_parameter(name).data


class Replicas:
    """Several methods as one: a forward pass of all, a loss for each, one backward pass, an update for each.

    Args:
        methods: ``packable``, made from one backbone, and of one ``likeness``.
        layout: of their images.
    """

    def __init__(self, methods: Sequence[OnePass], layout: type[Layout]) -> None:
        self.methods = list(methods)
        self.layout = layout(len(methods))
        self.learns = methods[0].optimizer is not None
        first = methods[0].backbone
        # The copy has modules of its own, but no parameters of its own.
        self.network = copy.deepcopy(first, {id(p): p for p in first.parameters()})
        for name in [name for name, module in first.named_modules() if isinstance(module, NORM_LAYERS)]:
            layers = [method.backbone.get_submodule(name) for method in methods]
            if any(map(_adapts, layers)) or _of_the_batch(layers[0]):
                parent, _, child = name.rpartition(".")
                self.network.get_submodule(parent).register_module(child, self.layout.norm(layers))
        self.joined = [module for module in self.network.modules() if isinstance(module, Joined)]

    def agree(self, images: Sequence[Tensor]) -> bool:
        """Whether the first method predicts among the others what it does by itself, to within rounding.

        It does, unless layers of another kind mix the images of a batch.
        """
        first = self.methods[0]
        with torch.no_grad():
            images = [first.usable(batch) for batch in images]
            together = self.layout.split(self.network(self.layout.join(images)))[0].float()
            by_itself = first.predict(images[0]).float()
            far = FAR[torch.is_autocast_enabled(by_itself.device.type)] * by_itself.norm()
            return not bool((together - by_itself).norm() > far)  # not a number: in both

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Predict: images (N, 3, H, W) in [0, 1] for each method, to logits (N, C) for each."""
        with gradients(images[0].device.type), torch.set_grad_enabled(self.learns):
            usable = [method.usable(batch) for method, batch in zip(self.methods, images, strict=True)]
            return self.layout.split(self.network(self.layout.join(usable)))

    def learn(self, logits: Sequence[Tensor]) -> list[Exception | None]:
        """Adapt all methods from their logits.

        Returns:
            What went wrong with each, if anything; that of one does not touch the others.
        """
        wrong: list[Exception | None] = [None] * len(self.methods)
        if self.learns:
            with gradients(logits[0].device.type):
                losses = self._losses(logits, wrong)
                self._follow(losses, wrong)
        for method, of_one, error in zip(self.methods, logits, wrong, strict=True):
            if error is None:
                method.end(len(of_one))
        return wrong

    def _losses(self, logits: Sequence[Tensor], wrong: list[Exception | None]) -> dict[int, Loss]:
        losses: dict[int, Loss] = {}
        for number, values in enumerate(each_of([method.objective for method in self.methods], logits)):
            try:
                if isinstance(values, Exception):
                    raise values
                losses[number] = self.methods[number].loss(logits[number], values)
            except Exception as error:  # it is raised in the run that it is of
                wrong[number] = error
        return losses

    def _follow(self, losses: Mapping[int, Loss], wrong: list[Exception | None]) -> None:
        try:
            if losses:
                torch.autograd.backward([self.methods[number].scaled(loss.value) for number, loss in losses.items()])
        except Exception as error:  # in what all share
            wrong[:] = [error] * len(wrong)
            return
        for layer in self.joined:
            layer.hand_out()
        for number, loss in losses.items():
            try:
                self.methods[number].learn(loss)
            except Exception as error:  # it is raised in the run that it is of
                wrong[number] = error


def _adapts(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _of_the_batch(layer: nn.Module) -> bool:
    """Whether it normalises with statistics of the batch."""
    return isinstance(layer, _BatchNorm) and layer.running_mean is None


def _kinds(model: nn.Module) -> list[tuple[str, type[nn.Module]]]:
    return [(name, getattr(module, "stands_for", type(module))) for name, module in model.named_modules()]
