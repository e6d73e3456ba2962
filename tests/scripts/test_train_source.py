from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np

from helpers.compositions import composed
from helpers.scripts import SCRIPTS, load_script

SCRIPT = SCRIPTS / "train_source.py"


def test_checkpoint_loads_with_the_options_that_are_printed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        images, labels = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 4
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    out = tmp_path / "a folder" / "net.safetensors"
    kwargs = json.dumps({"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]})
    options = ["--test", tmp_path / "test.npz", "--stem", "cifar", "--kwargs", kwargs, "--epochs", "1"]
    options += ["--batch-size", "20", "--device", "cpu", "--out", out]
    command = [sys.executable, SCRIPT, tmp_path / "train.npz", *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1: loss " in done.stdout

    words = shlex.split(done.stdout.splitlines()[-1].partition("use it with: tta ")[2])
    model = hydra.utils.instantiate(composed(*words).model, _convert_="all")
    assert model.num_classes == 4
    script = load_script("train_source")
    measured = 100 * script.accuracy(model.eval(), *script.load_clean(tmp_path / "test.npz"))
    assert f"accuracy on 40 held-out images: {measured:.2f} %" in done.stdout
    assert model.net.conv1.stride == (1, 1)
