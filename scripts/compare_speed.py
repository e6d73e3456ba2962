"""Finished runs as the program leaves them, and processes that read them all."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf

from tta.cli import CONFIGS
from tta.config.instantiate import plain
from tta.corruptions import BENCHMARK
from tta.recorder import Recorder
from tta.runs.directory import RunDirectory
from tta.runs.fingerprint import fingerprint
from tta.runs.provenance import environment
from tta.streams import Batch, DomainVisit
from tta.utils.devices import describe_device

CLASSES, IMAGES, BATCH = 1000, 5000, 64  # of ImageNet-C; images of each corruption
STREAM = ("stream=imagenet_c", "stream.root=ImageNet-C", f"stream.limit={IMAGES}", f"stream.batch_size={BATCH}")
OBJECTIVES = sorted(path.stem for path in (CONFIGS / "objective").glob("*.yaml"))
RATES = [factor * 10.0**power for power in range(-5, 0) for factor in (1, 3)]
WEIGHTS = "resnet50.tv_in1k"
CPU = torch.device("cpu")

COMPARE = "from tta.compare import main; main()"
PLAIN = """\
import json, pandas, pathlib, sys
for file in pathlib.Path(sys.argv[1]).glob("*/summary.json"):
    json.loads(file.read_bytes()), pandas.read_csv(file.with_name("batches.csv"))
"""


def ways_to_read(runs: Path) -> dict[str, Callable[[], object]]:
    """Make a function for each way to read these runs: a process of its own, whose output nobody sees."""
    programs = {
        "json and pandas.read_csv, run after run": (PLAIN,),
        "tta-compare": (COMPARE,),
        "tta-compare --figures --html": (COMPARE, "--figures", "--html"),
    }
    return {
        name: partial(
            subprocess.run, [sys.executable, "-c", text, str(runs), *words], stdout=subprocess.DEVNULL, check=True
        )
        for name, (text, *words) in programs.items()
    }


def write_runs(folder: Path, number: int) -> None:
    """Write the first runs of a sweep: baselines, and Tent's objectives by learning rates, all of that again by seeds.

    Tables are as many copies of one run's, made of random predictions; the accuracies of each summary are its own.
    """
    draws, made_by = torch.Generator().manual_seed(0), environment(["tta", "-m", *STREAM])
    several = list(islice(_sweep(), number))
    with tempfile.TemporaryDirectory() as temporary:
        with RunDirectory(Path(temporary) / "run").open("") as recorded:
            figures, sizes = _record(recorded), recorded.sizes()
        for place in range(number):
            seed, (config, choices) = place // len(several), several[place % len(several)]
            config = {**config, "seed": seed}
            name = f"{choices['method']}_{choices['objective']}_seed{seed}"
            path = folder / f"{name}-{fingerprint(config, WEIGHTS)}"
            shutil.copytree(recorded.path, path)
            accuracies = torch.rand(len(BENCHMARK), generator=draws).tolist()
            domains = [{**row, "accuracy": a} for row, a in zip(figures["domains"], accuracies, strict=True)]
            own = {"accuracy": sum(accuracies) / len(accuracies), "domains": domains}
            with RunDirectory(path).open(OmegaConf.to_yaml(config), sizes) as run:
                run.finish({"name": name, **figures, **own, **_origin(choices, config), **made_by, "config": config})


def _sweep() -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Configurations of a seed, composed as the program does, and the options taken in each."""
    learning = [
        ("method=tent", f"objective={objective}", f"optimizer.lr={lr}") for objective in OBJECTIVES for lr in RATES
    ]
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for words in (("method=source",), ("method=bn_adapt",), *learning):
            whole = hydra.compose("config", [*STREAM, "model=resnet50", *words], return_hydra_config=True)
            chosen = {group: option for group, option in whole.hydra.runtime.choices.items() if option}
            choices = {group: option for group, option in chosen.items() if not group.startswith("hydra/")}
            config = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
            yield plain(config), choices


def _record(directory: RunDirectory) -> dict[str, Any]:
    """Write the tables of a run, and return the figures of its summary."""
    recorder = Recorder(directory, [], CLASSES, CPU)
    draws = torch.Generator().manual_seed(0)
    loss = {"loss": torch.ones(()), "used": torch.tensor(BATCH)}
    for number, name in enumerate(BENCHMARK):
        visits = (DomainVisit(number, name, 5, 1),)
        recorder.start_domain(visits)
        for index in torch.arange(IMAGES).split(BATCH):
            labels, domain_index = index % CLASSES, torch.zeros_like(index)
            batch = Batch(
                torch.empty(0), labels, visits, domain_index, index, starts_domain=False, reset=False, skipped=()
            )
            recorder.record(batch, torch.randn(len(index), CLASSES, generator=draws), loss)
        recorder.end_domain()
    recorder.finish({})
    return recorder.summary


def _origin(choices: dict[str, str], config: dict[str, Any]) -> dict[str, Any]:
    """Say what a run was of, under the keys that the program uses."""
    return {
        "choices": choices,
        "weights": WEIGHTS,
        "normalization": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "data": "0" * 16,
        "subset": None,
        "classes": CLASSES,
        "classes_of_the_backbone": CLASSES,
        "method_data": None,
        "reset": config["scenario"]["reset"],
        "device": describe_device(CPU),
        "compiled": False,
    }
