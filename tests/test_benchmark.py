from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"


def test_objectives_are_ratios_of_em_and_say_where_they_come_from(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    words = ["objectives", "--device", "cpu", "--rounds", "1", "--shapes", "4x5", "8x3", "--out", str(out)]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    cells = {row[0]: row[1:] for row in rows}
    assert rows[0][-2:] == ["4 x 5", "8 x 3"]
    assert all(cell.endswith(" ms") for cell in cells["EM"])
    assert all(float(cell) > 0 for name in ("CADF", "AdaDEM", "COME", "SLR") for cell in cells[name])
    assert "benchmark.py objectives --device cpu" in out.read_text()


def test_methods_are_ratios_of_a_forward_pass_and_say_where_they_come_from(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    words = ["methods", "--device", "cpu", "--rounds", "1", "--model", "resnet10t", "--batch", "2", "--size", "32"]
    words += ["--methods", "source", "tent", "--out", str(out)]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["forward pass", "source", "tent"]
    time, memory = rows[2][1:]
    assert time.endswith(" ms")
    assert memory.endswith(" MiB")
    assert all(float(cell) > 0 for row in rows[3:] for cell in row[1:])
    assert "benchmark.py methods --device cpu" in out.read_text()


def test_corruptions_are_images_per_second_beside_the_plain_recipes(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    words = ["corruptions", "--device", "cpu", "--rounds", "1", "--batch", "2", "--scales", "32"]
    words += ["--corruptions", "fog", "contrast", "--out", str(out)]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["fog", "contrast", "geometric mean"]
    for ours, recipe, ratio in (row[1:] for row in rows[2:4]):
        assert abs(float(ratio) - float(ours) / float(recipe)) < 0.1 + 0.01 * float(ratio)
    assert "benchmark.py corruptions --device cpu" in out.read_text()


def test_streams_are_images_per_second_beside_the_official_loops(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    for number in range(3):
        file = tmp_path / "photos" / f"class{number}" / "a.JPEG"
        file.parent.mkdir(parents=True)
        Image.new("RGB", (224, 224), (number, 50, 100)).save(file)
    words = ["stream", "--device", "cpu", "--rounds", "1", "--images", "8", "--batch", "4", "--workers", "0"]
    words += ["--root", str(tmp_path / "photos"), "--out", str(out)]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    ours = {"ours", "ours, cached", "ours, cached, left as bytes", "ours, of an array"}
    assert {row[0] for row in rows[2:]} == {"ImageFolder and DataLoader", "TensorDataset and DataLoader"} | ours
    base = 1.0
    for name, speed, ratio in rows[2:]:
        base = float(speed) if "DataLoader" in name else base
        assert abs(float(ratio) - float(speed) / base) < 0.02 + 0.02 * float(ratio)
    assert "--root photos" in out.read_text()
    assert str(tmp_path) not in out.read_text().replace(f"--out {out}", "")


def test_sweeps_are_seconds_beside_commands_of_their_own(tmp_path: Path, demo_cache: Path) -> None:
    out = tmp_path / "table.md"
    words = ["sweep", "--device", "cpu", "--rounds", "1", "--out", str(out)]
    words += ["--words", "method=source,tent", "seed=0", "stream.limit=50", "stream.corruptions=fog"]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert rows[0][0] == "2 runs as"
    assert len(rows) == 7
    base = float(rows[2][1])
    for _, seconds, ratio in rows[2:]:
        assert abs(float(ratio) - base / float(seconds)) < 0.2 * float(ratio)
    assert "`tta -m method=source,tent seed=0 stream.limit=50 stream.corruptions=fog`" in out.read_text()
