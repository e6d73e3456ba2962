"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from helpers import faulty_server, tiny_data
from helpers.faulty_server import Server
from helpers.sweep_files import make_files
from helpers.tiny_data import MD5, TAR
from tta import cli
from tta.data import catalogue, download, obtain
from tta.models import Backbone, timm_backbone
from tta.utils.devices import tune_malloc

# One thread unless told otherwise: with two and other work on the machine, a small model's forward can take a hundred
# times longer. Processes that tests start inherit the variable.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

tune_malloc()  # as a run does; without it, tests of large batches take a quarter longer

# Processes that run tests side by side (pytest-xdist) are told the width of the terminal, which is no test's own.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)

# A job in the background starts with SIGINT ignored, and its children too; tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and checkpoints beside the repository.

    Without it the test is skipped, except in CI, where it is always there and its absence is an error.
    """
    if not SHARED.is_dir():
        message = f"no real test data: expected the folder 'shared' beside the repository, at {SHARED}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def cifar_resnet18(shared: Path) -> Backbone:
    """A narrow ResNet-18 trained on CIFAR-10."""
    return timm_backbone(
        "resnet18",
        checkpoint=str(shared / "models" / "resnet18_w16_cifar10.safetensors"),
        stem="cifar",
        kwargs={"channels": (16, 32, 64, 128)},
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in the layout of CIFAR-10-C, and a checkpoint of a small network with BatchNorm."""
    root = tmp_path_factory.mktemp("files")
    make_files(root)
    return root


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own for the demo stream, shared by all processes of one pytest run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTA_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    with faulty_server.running() as server:
        yield server


@pytest.fixture
def server(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that has the data set ``tiny``; pauses are short, and a chunk is 10 kB."""
    shared_server.files, shared_server.faults, shared_server.requests = {"TINY-C.tar": TAR}, [], []
    shared_server.etag = '"1"'
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSES", (0.0,) * 4)
    monkeypatch.setattr(download, "CHUNK", 10_000)
    monkeypatch.setattr(obtain, "MARGIN", 0)
    tiny = tiny_data.dataset(shared_server.url("TINY-C.tar"), len(TAR), MD5)
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny)
    return shared_server


@pytest.fixture
def unchecked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither size nor checksum is known, as for ImageNet-3DCC."""
    monkeypatch.setitem(catalogue.DATASETS, "tiny", tiny_data.dataset(server.url("TINY-C.tar")))


@pytest.fixture
def tta_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Call ``tta`` with arguments, in an empty folder; errors come out as ``SystemExit``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("TTA_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str) -> None:
        # Hydra reads the variable that main sets.
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", ["tta", *arguments])
        cli.main()

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
