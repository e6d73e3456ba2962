from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from helpers.errors import assert_names
from helpers.scripts import load_script
from helpers.written_runs import write_run
from tta.objectives import DEM, EM, AdaDEM

plot_objectives = load_script("plot_objectives")


def test_reward__is_the_closed_form() -> None:
    p, found = plot_objectives.reward(EM())
    for k in (0, 100, 399):
        others = (1 - p[k]) / 9
        entropy = -(p[k] * p[k].log() + 9 * others * others.log())
        assert float(found[k]) == pytest.approx(float(p[k] * (p[k].log() + entropy)), abs=1e-9)


def test_reward__of_sure_predictions() -> None:
    """EM's vanishes, AdaDEM's does not."""
    assert abs(float(plot_objectives.reward(EM())[1][-1])) < 1e-3
    # One batch after the beginning the calibrator of a sure class is 0.9 / 10 + 0.1.
    assert float(plot_objectives.reward(AdaDEM())[1][-1]) == pytest.approx(1 - 0.19, abs=1e-3)
    assert float(plot_objectives.reward(DEM(1, 0))[1][-1]) == pytest.approx(1, abs=1e-3)
    assert plot_objectives.reward(DEM(2, 1))[1].isfinite().all()


def test_predictions__are_drawn_by_frequency(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "source", 0, {"fog": 0.5, "snow": 0.7})  # 55 and 45 of 100 predicted, 50 and 50 labelled
    (axes,) = plot_objectives.predictions([tmp_path]).axes
    predicted, labels = axes.get_lines()
    assert list(predicted.get_ydata()) == pytest.approx([55, 45])
    assert list(labels.get_ydata()) == pytest.approx([50, 50])


def test_command__writes_both_formats(
    call: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(plot_objectives, "predictions", "--out", tmp_path / "p")
    assert_names(capsys.readouterr().err, "predictions")
    call(plot_objectives, "rewards", "--out", tmp_path / "new" / "rewards")
    with Image.open(tmp_path / "new" / "rewards.png") as image:
        assert image.size[0] > 1000
    assert (tmp_path / "new" / "rewards.svg").read_text().startswith("<?xml")
