from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tta.corruptions import corrupt
from tta.streams.files import imagenet_crop

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "plot_corruptions.py"


def test_a_sheet_has_an_image_for_each_corruption_and_severity(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ["--scale", "32", "--cell", "32", "--image", tmp_path / "a.png", "--out", tmp_path / "sheet.png"]
    subprocess.run([sys.executable, SCRIPT, *map(str, words), "--corruptions", "fog", "snow", "contrast"], check=True)
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    clean = np.array(imagenet_crop(Image.open(tmp_path / "a.png"), 32))
    x = torch.from_numpy(clean).permute(2, 0, 1)[None]
    for left, top, name in ((0, 0, "fog"), (0, 50, "snow"), (6 * 34 + 8, 0, "contrast")):
        row = sheet[top + 16 : top + 48, left:]
        assert np.array_equal(row[:, :32], clean)
        for severity in range(1, 6):
            expected = corrupt(x, name, severity, index=torch.zeros(1, dtype=torch.int64))[0].permute(1, 2, 0).numpy()
            assert np.array_equal(row[:, 34 * severity : 34 * severity + 32], expected)
