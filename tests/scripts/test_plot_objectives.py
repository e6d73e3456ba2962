from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tta.objectives import DEM, EM, AdaDEM

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "plot_objectives.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plot_objectives", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reward_is_the_closed_form(script: ModuleType) -> None:
    p, found = script.reward(EM())
    for k in (0, 100, 399):
        others = (1 - p[k]) / 9
        entropy = -(p[k] * p[k].log() + 9 * others * others.log())
        assert float(found[k]) == pytest.approx(float(p[k] * (p[k].log() + entropy)), abs=1e-9)


def test_reward_of_em_collapses_for_sure_predictions_and_that_of_adadem_does_not(script: ModuleType) -> None:
    assert abs(float(script.reward(EM())[1][-1])) < 1e-3
    # One batch after the beginning the calibrator of a sure class is 0.9 / 10 + 0.1.
    assert float(script.reward(AdaDEM())[1][-1]) == pytest.approx(1 - 0.19, abs=1e-3)
    assert float(script.reward(DEM(1, 0))[1][-1]) == pytest.approx(1, abs=1e-3)
    assert math.isfinite(float(script.reward(DEM(2, 1))[1][-1]))


def test_the_command_writes_both_formats(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPT), "rewards", "--out", str(tmp_path / "new" / "rewards")], check=True)
    with Image.open(tmp_path / "new" / "rewards.png") as image:
        assert image.size[0] > 1000
    assert (tmp_path / "new" / "rewards.svg").read_text().startswith("<?xml")
