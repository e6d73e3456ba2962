"""A method's step as one CUDA graph: a GPU gets all of it at once, and waits for no Python between its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

SETTLED_AFTER = 3
"""Batches until all that a step makes when it is first called is made: moments, tables, the plans of libraries."""

Step = Callable[[Tensor], dict[str, Tensor]]
"""Images (N, 3, H, W) to what a step gives, by name."""


class Recording(Protocol):
    """A step that can be repeated on other images of the same shape."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Repeat it; what it gives belongs to the caller."""


Recorder = Callable[[Step, Tensor], Recording]
"""Makes a recording of a step, with images of the shape that it is for."""


class GraphedStep:
    """A step that is captured once it has settled, and replayed for every later batch of that shape.

    The first batches are stepped as ever, on a CUDA stream of their own. Then the step is recorded, which computes
    nothing, and replayed; batches of another shape, as the last of a domain, are stepped as ever, on the same state.

    What a step changes must be tensors that stay where they are, and nothing it does may wait for the device or depend
    on its answer.

    Args:
        step: what is captured.
        record: makes the recording.
    """

    def __init__(self, step: Step, record: Recorder) -> None:
        self._step = step
        self._record = record
        self._recording: Recording | None = None
        self._shape: torch.Size | None = None
        self._seen = 0

    def forget(self) -> None:
        """Begin anew, as tensors that the graph knows have been replaced."""
        self._recording = self._shape = None
        self._seen = 0

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Step."""
        if images.shape != self._shape:
            if self._recording is not None:
                return self._as_ever(images)
            self._shape, self._seen = images.shape, 0
        if self._seen < SETTLED_AFTER:
            self._seen += 1
            return self._as_ever(images)
        if self._recording is None:
            self._recording = self._record(self._step, images)
        return self._recording(images)

    def _as_ever(self, images: Tensor) -> dict[str, Tensor]:
        with beside(images.device):
            return self._step(images)


class CudaGraph:
    """A step recorded as a CUDA graph.

    Raises:
        RuntimeError: if it does what no graph can hold.
    """

    def __init__(self, step: Step, images: Tensor) -> None:
        self._images = images.clone()
        self._graph = torch.cuda.CUDAGraph()
        try:
            # Threads that read images, or lock their pages, may go on meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._given = step(self._images)
        except RuntimeError as error:
            raise RuntimeError(
                f"graph=true: a step of this method and backbone cannot be captured as a CUDA graph ({error}). "
                "Run it with graph=false"
            ) from error

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Replay."""
        self._images.copy_(images, non_blocking=True)
        self._graph.replay()
        return {name: value.clone() for name, value in self._given.items()}


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Have a GPU do what is asked of it in the block on a stream beside the current one, behind what came before."""
    if device.type != "cuda":
        yield
        return
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)
