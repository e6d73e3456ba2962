from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.errors import raises_naming
from helpers.scripts import load_script
from tta.corruptions import corrupt
from tta.streams.files import imagenet_crop

plot_corruptions = load_script("plot_corruptions")


def test_sheet__holds_every_severity(call: Callable[..., None], tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ["--scale", 32, "--cell", 32, "--image", tmp_path / "a.png", "--out", tmp_path / "sheet.png"]
    call(plot_corruptions, *words, "--corruptions", "fog", "snow", "contrast")
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    clean = np.array(imagenet_crop(Image.open(tmp_path / "a.png"), 32))
    x = torch.from_numpy(clean).permute(2, 0, 1)[None]
    for left, top, name in ((0, 0, "fog"), (0, 50, "snow"), (6 * 34 + 8, 0, "contrast")):
        row = sheet[top + 16 : top + 48, left:]
        assert np.array_equal(row[:, :32], clean)
        for severity in range(1, 6):
            expected = corrupt(x, name, severity, index=torch.zeros(1, dtype=torch.int64))[0].permute(1, 2, 0).numpy()
            assert np.array_equal(row[:, 34 * severity : 34 * severity + 32], expected)


def test_sheet__unreadable_image(call: Callable[..., None], tmp_path: Path) -> None:
    words = ["--image", tmp_path / "none.png", "--out", tmp_path / "sheet.png"]
    with raises_naming(SystemExit, "--image", "none.png"):
        call(plot_corruptions, *words)
    with pytest.raises(SystemExit):
        call(plot_corruptions, "--scale", 33, "--out", tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
