"""Which targets of a configuration are called, and which are not even imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.errors import raises_naming
from tta import targets
from tta.checks import PartError
from tta.targets import check_targets

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module and a package of a user's own, and what is known of targets as at the beginning."""
    (tmp_path / "my_part.py").write_text(
        "import os\nfrom subprocess import run\nimport torch\nclass Part:\n    @classmethod\n    def of(cls): ...\n"
    )
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "inner.py").write_text("def make(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_part", "my_package", "my_package.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for known in (targets._may_be_called, targets._is_own):
        known.cache_clear()
    yield
    for known in (targets._may_be_called, targets._is_own):
        known.cache_clear()


@pytest.mark.parametrize(
    "target",
    [
        *("tta.methods.Tent", "tta.streams.cifar.cifar_c", "tta.demo.stream", "torch.optim.SGD", "torch.optim.AdamW"),
        *("my_part.Part", "my_part.Part.of", "my_package.inner.make"),
        "my_part.run",  # imported there on purpose
        *("not_there.X", "my_part.Nothing", "tta.methods.Nothing"),  # Hydra tells what is missing
    ],
)
def test_target__of_ours_is_called(target: str) -> None:
    check_targets({"optimizer": {"_target_": target}, "several": [{"_target_": target}]})


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "subprocess.run", "builtins.eval", "importlib.import_module", "shutil.rmtree", "this.s"),
        *("torch.load", "torch.hub.load", "torch.optimizer.X", "numpy.load", "timm.create_model", "hydra.utils.call"),
        *(
            "tta.runs.subprocess.run",
            "tta.job.ExitStack",
            "torch.optim.sgd.torch.load",
            "torch.optim.lr_scheduler.partial",
        ),
        *("my_part.os.system", "my_part.torch.load"),
    ],
)
@pytest.mark.parametrize("place", [lambda of: of, lambda of: {"a": of}, lambda of: {"a": [{"b": of}]}])
def test_target__of_others_is_refused(target: str, place: Callable[[Any], Any]) -> None:
    before = set(sys.modules)
    with raises_naming(PartError, target, "torch.optim"):
        check_targets(place({"_target_": target, "x": 1}))
    assert "this" not in set(sys.modules) - before
