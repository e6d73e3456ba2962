from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tta.corruptions import corrupt
from tta.streams import Scenario
from tta.streams.cifar import cifar_c

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_corrupted.py"


def test_what_is_written_is_read_as_cifar_c(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), np.arange(8)
    np.savez(tmp_path / "clean.npz", images=images, labels=labels)
    out = tmp_path / "C"
    command = [sys.executable, SCRIPT, tmp_path / "clean.npz", "--out", out, "--limit", "6", "--seed", "3"]
    command += ["--corruptions", "fog", "shot_noise"]
    for said in ("written: ", " is there already"):  # the second time nothing is made again
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        assert done.stdout.count(said) == 2
    assert sorted(path.name for path in out.iterdir()) == ["fog.npy", "labels.npy", "shot_noise.npy"]
    stream = cifar_c(str(out), corruptions=["fog", "shot_noise"], severity=4)
    clean = torch.from_numpy(images).permute(0, 3, 1, 2)[:6]
    for batch in stream.batches(stream.plan(Scenario(order="file"), 0)):
        assert batch.labels.tolist() == list(range(6))
        assert torch.equal(batch.images, corrupt(clean, batch.domain, 4, index=torch.arange(6), seed=3))
