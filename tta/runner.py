"""The loop of a run: every batch is predicted once, online, and recorded."""

from __future__ import annotations

import errno
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from tta.loggers import Logger
from tta.methods.base import Method, batch_too_small
from tta.recorder import Recorder
from tta.runs.checkpoint import Checkpoint, load_method_state, method_state, random_state, set_random_state
from tta.runs.directory import RunDirectory
from tta.streams import Batch, Scenario, Stream
from tta.utils.devices import CPU, FP32, Precision


@dataclass
class Runner:
    """Feed a stream to a method once, online, and record what it predicts.

    Args:
        method: on its device already.
        stream: the images.
        scenario: the order of the images, and when the method is reset.
        seed: of the order.
        directory: where the results go.
        loggers: hear of every row after it is in the directory.
        device: of the method.
        precision: of the method's computations.
        checkpoint: where the state is saved, and resumed from if it holds one; ``None`` saves nothing.
        metadata: goes into ``summary.json`` beside the results: ``name``, ``config``, where the results come from.

    Raises:
        ValueError: if a batch of the stream is too small for the method.

    Example:
        >>> runner = Runner(method, stream, Scenario(reset="never"), 0, RunDirectory(Path("runs/mine")))
        >>> runner.run()["accuracy"]
    """

    method: Method
    stream: Stream
    scenario: Scenario
    seed: int
    directory: RunDirectory
    loggers: Sequence[Logger] = ()
    device: torch.device = CPU
    precision: Precision = FP32
    checkpoint: Checkpoint | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan = self.stream.plan(self.scenario, self.seed)
        smallest = min(len(planned.index) for planned in self.plan)
        if smallest < self.method.min_batch_size:
            raise ValueError(batch_too_small(self.method, smallest))

    def run(self) -> dict[str, Any]:
        """Run the whole stream, or the rest of it after the checkpoint.

        Returns:
            The content of ``summary.json``: ``accuracy`` (mean over domains) and ``online_accuracy`` (over all images),
            in [0, 1]; ``images``, ``seconds``, ``skipped``; ``domains``, one record for each; and ``metadata``.

        Raises:
            FloatingPointError: if a loss or a logit is not finite.
            OSError: if the directory cannot be written.
        """
        with self.session() as recorder:
            for batch in self.batches(recorder):
                logits = self.predict(batch.images)
                recorder.record(batch, logits, self.method.diagnostics)
        return recorder.summary

    def predict(self, images: Tensor) -> Tensor:
        """Return the method's logits (N, C) for uint8 images (N, 3, H, W); the method adapts to them."""
        with self.precision.autocast(self.device):
            return self.method(to_unit_float(images, self.device))

    def batches(self, recorder: Recorder) -> Iterator[Batch]:
        """Yield the batches; between them, start and end domains, save checkpoints and reset the method."""
        first = self.checkpoint.state["batch"] if self.checkpoint and self.checkpoint.state else 0
        for number, batch in enumerate(self.stream.batches(self.plan[first:], self.device), first):
            if batch.starts_domain:
                recorder.end_domain()
            if self.checkpoint and number > first and self.checkpoint.is_due(number, batch.starts_domain):
                self.save_checkpoint(self.checkpoint, number, recorder)
            if batch.starts_domain:
                recorder.start_domain(batch.visits)
            if batch.reset:
                self.method.reset()
            recorder.skip(batch.skipped)
            if len(batch.index):
                yield batch
        recorder.end_domain()

    @contextmanager
    def session(self) -> Iterator[Recorder]:
        """Open loggers and directory, resume from the checkpoint; write the summary once the block has succeeded."""
        state = self._resume_method()
        done = state["recorder"]["images"] if state else 0
        total = sum(len(planned.index) for planned in self.plan)
        name, config = self.metadata.get("name", self.directory.path.name), self.metadata.get("config", {})
        if done:
            print(f"{name}: resumed after {done} of {total} images", file=sys.stderr)
        with ExitStack() as stack, self._explain_interruption(name):
            for logger in self.loggers:  # before the directory: a logger that cannot start costs no rows
                stack.callback(logger.close)
                logger.start(name, config, self.directory.path, total, done)
            stack.enter_context(self.directory.open(OmegaConf.to_yaml(config), state and state["files"]))
            recorder = Recorder(self.directory, self.loggers, self.stream.num_classes, self.device)
            if state:
                recorder.load_state(state["recorder"])
                set_random_state(state["random"], self.device)
            try:
                yield recorder
            finally:
                recorder.flush(check=False)  # rows whose figures are known are kept, also after an error
            recorder.finish(self.metadata)

    def _resume_method(self) -> dict[str, Any] | None:
        """Load the method's state from the checkpoint; return all of its state, or ``None`` to begin with."""
        if not self.checkpoint or not self.checkpoint.state:
            return None
        try:
            load_method_state(self.method, self.checkpoint.state["method"])
        except pickle.UnpicklingError as error:
            self.checkpoint.refuse(error)
            self.method.reset()
        return self.checkpoint.state

    def save_checkpoint(self, checkpoint: Checkpoint, number: int, recorder: Recorder) -> None:
        """Save the state before batch ``number``."""
        recorder.flush()
        checkpoint.save(
            {
                "batch": number,
                "method": method_state(self.method),
                "recorder": recorder.state(),
                "random": random_state(self.device),
                "files": self.directory.sizes(),
            }
        )

    @contextmanager
    def _explain_interruption(self, name: str) -> Iterator[None]:
        """Say where the rows are after Ctrl-C, and what to do when the disk is full."""
        try:
            yield
        except KeyboardInterrupt:
            print(f"{name}: interrupted; its rows so far are in {self.directory.path}", file=sys.stderr)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                f"the disk is full ({error}). The rows so far are in {self.directory.path}: make room, and the same "
                "command runs the rest"
            ) from error


def to_unit_float(images: Tensor, device: torch.device) -> Tensor:
    """Move uint8 images to a device and convert them to floats in [0, 1]."""
    # They cross as bytes, a quarter of their size as floats.
    return images.to(device, non_blocking=True).float().div_(255)
