"""The only loop: for each batch, ``logits = method(images)``, then metrics and loggers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tta.loggers import Logger
from tta.methods.base import Method, batch_too_small
from tta.recorder import Recorder
from tta.runs.checkpoint import Checkpoints, load_method_state, method_state, random_state, set_random_state
from tta.runs.directory import RunDirectory
from tta.streams import Scenario, Stream
from tta.utils.devices import FP32, Precision


@dataclass
class Runner:
    """Feeds a stream to a method once, online, and keeps what comes of it.

    Args:
        method: on its device already.
        stream: what arrives.
        scenario: in which order, and when the method is reset.
        seed: of the order.
        directory: entered after ``prepare_resume`` and before ``run`` is called.
        loggers: are told of every row after it is in the directory; started before ``run`` is called.
        device: where the method is.
        precision: that it computes in.
        checkpoints: where the state is saved, and what to continue from; ``None`` saves nothing.

    Raises:
        ValueError: if a batch of the stream is too small for the method.
    """

    method: Method
    stream: Stream
    scenario: Scenario
    seed: int
    directory: RunDirectory
    loggers: Sequence[Logger]
    device: torch.device
    precision: Precision = FP32
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        self._plan = self.stream.plan(self.scenario, self.seed)
        smallest = min(len(planned.index) for planned in self._plan)
        if smallest < self.method.min_batch_size:
            raise ValueError(batch_too_small(self.method, smallest))

    @property
    def images(self) -> int:
        """How many images are to come."""
        return sum(len(planned.index) for planned in self._plan)

    def run(self) -> dict[str, Any]:
        """Run the whole stream, or what is left of it after the checkpoint.

        Returns:
            ``accuracy`` (mean over domains) and ``online_accuracy`` (over all images), fractions in [0, 1];
            ``images``, ``seconds``, ``skipped`` and ``domains``, one record for each.

        Raises:
            FloatingPointError: at a loss or logit that is not finite.
        """
        recorder = Recorder(self.directory, self.loggers, self.stream.num_classes, self.device)
        first = self._restore(recorder)
        try:
            batches = self.stream.batches(self._plan[first:], self.device)
            for number, batch in enumerate(batches, first):
                if batch.starts_domain:
                    recorder.end_domain()
                if self.checkpoints and number > first and self.checkpoints.is_due(number, batch.starts_domain):
                    self._save(self.checkpoints, number, recorder)
                if batch.starts_domain:
                    recorder.start_domain(batch.visits)
                if batch.reset:
                    self.method.reset()
                recorder.skip(batch.skipped)
                if len(batch.index):
                    recorder.add(self.predict(batch.images), batch, self.method.diagnostics)
            recorder.end_domain()
        finally:
            # Rows whose figures can still be had are kept, also when the run is interrupted.
            recorder.flush(check=False)
        return recorder.summary()

    def prepare_resume(self) -> int:
        """Have the directory keep the rows that the checkpoint knows; return how many images they are of."""
        state = self.checkpoints.state if self.checkpoints else None
        self.directory.resume_sizes = state and state["files"]
        return state["recorder"]["count"][1] if state else 0

    def _restore(self, recorder: Recorder) -> int:
        """Go to where the checkpoint is, if there is one; return the number of the batch that comes next."""
        state = self.checkpoints.state if self.checkpoints else None
        if state is None:
            return 0
        load_method_state(self.method, state["method"])
        recorder.load_state(state["recorder"])
        set_random_state(state["random"], self.device)
        return state["batch"]

    def _save(self, checkpoints: Checkpoints, number: int, recorder: Recorder) -> None:
        recorder.flush()
        state = {
            "batch": number,
            "method": method_state(self.method),
            "recorder": recorder.state(),
            "random": random_state(self.device),
            "files": self.directory.sizes(),
        }
        checkpoints.save(state)

    def predict(self, images: Tensor) -> Tensor:
        """Return the method's logits (N, C) for uint8 images (N, 3, H, W); the method adapts to them."""
        with self.precision.autocast(self.device):
            return self.method(to_unit_float(images, self.device))


def to_unit_float(images: Tensor, device: torch.device) -> Tensor:
    """Bring uint8 images to a device and turn them into floats in [0, 1]."""
    # They cross as bytes, a quarter of their size as floats.
    return images.to(device, non_blocking=True).float().div_(255)
