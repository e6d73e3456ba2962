"""How planned batches are read: by processes, by threads, or on the device; and brought to it before their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tta.streams.arrays import ArrayImages
from tta.streams.files import FileImages
from tta.streams.types import Batch, BatchPlan, DerivedImages, Domain

T = TypeVar("T")
S = TypeVar("S")

Item = Batch | Exception
"""A batch, or what went wrong with it, which is raised at its turn."""

READ_BY_THREADS = (ArrayImages, FileImages)
"""What is read by libraries that let other threads go on meanwhile."""

RESIDENT_BYTES = 2**31
"""Images up to this size lie on the GPU whole: all of CIFAR-10-C at two severities have 1.2 GB."""

RESIDENT_SHARE = 0.25
"""... and up to this share of the memory that is free there."""


def read_batches(
    domains: Sequence[Domain], plan: Sequence[BatchPlan], workers: int, device: torch.device
) -> Iterator[Batch]:
    """Read the planned batches, in order.

    - Images in arrays that are small enough lie on a GPU whole, and batches are picked there.
    - Other arrays, and files, are read by threads of this process: copying and decoding let each other go on, and what
      is read need not be handed over by a process.
    - Images are corrupted by processes; or on the device, at their turn, what they are made of being read as above.

    What does not lie on a GPU goes there through page-locked memory, and is copied while the batch before it is worked
    on.

    Args:
        domains: of the stream; the plan counts them.
        plan: the batches.
        workers: processes or threads that read ahead; 0 reads when the batch is asked for.
        device: where the images are to be.

    Raises:
        ValueError: at the turn of a batch that cannot be read.
        OSError: likewise.
    """
    on_gpu = device.type == "cuda"
    sources = [clean_of(domain) for domain in domains]
    used = [sources[number] for number in sorted({visit.number for planned in plan for visit in planned.visits})]
    if on_gpu and fits_on_device(used, device_budget(device)):
        sources = device_resident(sources, device)
        workers, on_gpu = 0, False  # the images are there already
    threads = all(isinstance(domain.load, READ_BY_THREADS) for domain in used)
    batches = _Batches(sources, plan)
    items = _by_threads(batches, workers, on_gpu) if threads else _by_processes(batches, workers, on_gpu)
    with closing(items):  # at once: the frames of an error would keep the processes
        for item in _copied_ahead(items, device) if on_gpu else items:
            if isinstance(item, Exception):
                raise item
            yield _finished(item, domains, device)


def clean_of(domain: Domain) -> Domain:
    """Give a domain whose images are to be made on the device with those that they are made of."""
    makes = _made_there(domain)
    return replace(domain, load=makes.clean) if makes else domain


def _made_there(domain: Domain) -> DerivedImages | None:
    return domain.load if isinstance(domain.load, DerivedImages) and domain.load.on_device else None


def _finished(batch: Batch, domains: Sequence[Domain], device: torch.device) -> Batch:
    """Make the images of a batch that are to be made on the device."""
    makes = [_made_there(domains[visit.number]) for visit in batch.visits]
    if all(load is None for load in makes):
        return batch
    images = batch.images.to(device, non_blocking=True)
    finished = torch.empty(images.shape, dtype=images.dtype, device=device)
    for place, load in enumerate(makes):
        (positions,) = torch.where(batch.domain_index == place)
        there = positions.to(device, non_blocking=True)
        part = images[there]
        finished[there] = load.make(part, batch.index[positions]) if load is not None and len(part) else part
    return replace(batch, images=finished)


def device_budget(device: torch.device) -> int:
    """Bytes of images that may lie on a GPU."""
    return min(RESIDENT_BYTES, int(RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]))


def fits_on_device(domains: Iterable[Domain], room: int) -> bool:
    """Whether the images of the domains can be held on a device, in so many bytes."""
    loads = {id(domain.load): domain.load for domain in domains}.values()  # a domain that comes again is held once
    arrays = [load for load in loads if isinstance(load, ArrayImages) and load.is_complete]
    return len(arrays) == len(loads) and sum(load.array.nbytes for load in arrays) <= room


def device_resident(domains: Sequence[Domain], device: torch.device) -> list[Domain]:
    """Give the domains whose images are in arrays with images that are held on a device."""
    held = {id(d.load): d.load.on(device) for d in domains if isinstance(d.load, ArrayImages)}
    return [replace(domain, load=held.get(id(domain.load), domain.load)) for domain in domains]


def _by_processes(batches: _Batches, workers: int, pin_memory: bool) -> Generator[Item, None, None]:
    # A batch is one item of the data set: a worker reads it whole, and nothing is collated again.
    yield from DataLoader(
        batches,
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        collate_fn=identity_collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or it would draw from the global one, which is the method's
    )


def _by_threads(batches: _Batches, workers: int, pin_memory: bool) -> Generator[Item, None, None]:
    def read(number: int) -> Item:
        item = batches[number]
        return item.pin_memory() if pin_memory and isinstance(item, Batch) else item

    if not workers:
        yield from map(read, range(len(batches)))
        return
    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[Item]] = deque()
    try:
        for number in range(len(batches)):
            ahead.append(pool.submit(read, number))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _copied_ahead(items: Iterable[Item], device: torch.device) -> Iterator[Item]:
    """Copy batches to a GPU, each while the one before it is worked on."""
    side = torch.cuda.Stream(device)

    def start(item: Item) -> tuple[Item, torch.cuda.Event | None]:
        if isinstance(item, Exception):
            return item, None
        with torch.cuda.stream(side):
            item = replace(item, images=item.images.to(device, non_blocking=True))
            return item, side.record_event()

    def finish(started: tuple[Item, torch.cuda.Event | None]) -> Item:
        item, copied = started
        if isinstance(item, Batch) and copied is not None:
            now = torch.cuda.current_stream(device)
            now.wait_event(copied)
            item.images.record_stream(now)  # its memory is not given to the next copy before this work is done
        return item

    return prefetch_one(items, start, finish)


def prefetch_one(items: Iterable[T], start: Callable[[T], S], finish: Callable[[S], T]) -> Iterator[T]:
    """Start each item before the one before it is given out, and finish it at its turn."""
    started: deque[S] = deque()
    for item in items:
        started.append(start(item))
        if len(started) > 1:
            yield finish(started.popleft())
    for last in started:
        yield finish(last)


class _Batches(Dataset[Item]):
    """The batches of a plan, read by their number."""

    def __init__(self, domains: Sequence[Domain], plan: Sequence[BatchPlan]) -> None:
        self.domains = domains
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Item:
        planned = self.plan[number]
        try:
            parts = [self._part(planned, place) for place in planned.domain_index.unique().tolist()]
        except (OSError, ValueError) as error:
            return error  # raised in a worker, its message would be the text of a whole trace
        order = torch.cat([part.positions for part in parts]).argsort()
        kept = _together([part.positions for part in parts], order)
        return Batch(
            images=_together([part.images for part in parts], order),
            labels=_together([part.labels for part in parts], order),
            visits=planned.visits,
            domain_index=planned.domain_index[kept],
            index=planned.index[kept],
            starts_domain=planned.starts_domain,
            reset=planned.reset,
            skipped=tuple(image for part in parts for image in part.skipped),
        )

    def _part(self, planned: BatchPlan, place: int) -> _Part:
        """Read the images of a batch that belong to one of its visits."""
        (positions,) = torch.where(planned.domain_index == place)
        domain = self.domains[planned.visits[place].number]
        images, kept, skipped = domain.load(planned.index[positions])
        positions = positions[kept]
        return _Part(images, domain.labels[planned.index[positions]], positions, tuple((place, s) for s in skipped))


class _Part(NamedTuple):
    images: Tensor
    labels: Tensor
    positions: Tensor  # in the batch
    skipped: tuple[tuple[int, str], ...]


def _together(parts: list[Tensor], order: Tensor) -> Tensor:
    """Join what was read domain by domain, in the order of arrival; images keep their memory format."""
    if len(parts) == 1:
        return parts[0]
    joined = torch.cat(parts)
    return torch.empty_like(joined).copy_(joined[order])


def identity_collate(item: Any) -> Any:
    """Collate nothing."""
    return item
