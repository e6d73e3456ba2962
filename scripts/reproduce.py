"""Reproduce a published table: sweeps, then a comparison that has ours, the published figures and the difference.

    python scripts/reproduce.py table12 runs/table12 stream.root=ImageNet-C
    LIMIT=500 python scripts/reproduce.py table12 runs/try stream.root=ImageNet-C --part resnet50 --plan

Before anything runs it says how many runs there are, how many of them are finished, and roughly how long the others
take: the frozen model's time for an image, measured on a few batches, times the cost of each method as
docs/benchmark-methods-cpu.md has it. Finished runs are found again, so it can be stopped and started.

Options of `tta` take the place of a study's own, `model=...` that of all its `model.` options. So any stream and model
will do, e.g. `stream=corrupted stream.source=cifar10_test.npz model=timm model.name=... model.checkpoint=...`; what
then differs from the published protocol is said beside the differences. From the environment come LIMIT, images of each
corruption (`stream.limit`), and CLEAN, where EATA's clean images are; without CLEAN, EATA is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tta import compare
from tta.cli import CONFIGS, EXPECTED, error_message
from tta.compare import find_runs
from tta.config.instantiate import plain
from tta.runs.fingerprint import hashed_groups

SCRIPTS = Path(__file__).resolve().parent
STUDIES = SCRIPTS / "studies.yaml"
COSTS = SCRIPTS.parent / "docs" / "benchmark-methods-cpu.md"

TRIAL = 4
"""Batches of the trial, of which the first is not counted."""

GIVEN_LATER = ("seed", "optimizer.lr")
"""Keys on whose values nothing else in a configuration depends: it need not be composed anew for each."""


@dataclass(frozen=True)
class Part:
    """Sweeps whose runs are compared with each other, and with one published table."""

    name: str
    published: str
    compare: Sequence[str]
    sweeps: Sequence[Sequence[str]]
    left_out: Sequence[str]
    folder: Path


def main() -> None:
    """Tell, run, compare; exits with 1 if a run or the comparison failed."""
    options = _options()
    study = _studies()[options.study]
    overrides = [*options.overrides, *([f"stream.limit={os.environ['LIMIT']}"] if os.environ.get("LIMIT") else [])]
    try:
        parts = [
            build(name, part, overrides, options.runs / name, os.environ)
            for name, part in study["parts"].items()
            if options.part in (None, name)
        ]
        if not parts:
            raise ValueError(
                f"--part: {options.study} has no part {options.part!r}; it has {', '.join(study['parts'])}"
            )
        print(f"{options.study}: {study['about']}")
        for part in parts:
            print("\n".join(told(part)), flush=True)
    except EXPECTED as error:
        raise SystemExit(f"reproduce: error: {error_message(error)}") from None
    if not options.plan:
        failed = [f"{part.name}: {problem}" for part in parts for problem in run(part, options.figures)]
        if failed:
            raise SystemExit(f"reproduce: not all is done, the same command goes on: {'; '.join(failed)}")


def _options() -> argparse.Namespace:
    studies = "\n".join(f"  {name:20} {study['about']}" for name, study in _studies().items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"studies\n{studies}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=list(_studies()), metavar="STUDY")
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder for the runs, one in it for each part")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of tta, e.g. stream.root=ImageNet-C")
    parser.add_argument("--part", help="this part of the study alone, e.g. resnet50")
    parser.add_argument("--plan", action="store_true", help="tell how many runs and how long, and run none")
    parser.add_argument("--figures", action="store_true", help="figures and a page too")
    options = parser.parse_intermixed_args()
    if "=" in str(options.runs) or not all("=" in word for word in options.overrides):
        parser.error("expected the folder for the runs, then options of tta as KEY=VALUE")
    return options


def _studies() -> dict[str, Any]:
    studies = OmegaConf.load(STUDIES)
    assert isinstance(studies, DictConfig)
    return plain(studies)


def build(
    name: str, part: Mapping[str, Any], overrides: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> Part:
    """Put together the words of each sweep: the part's, its own, and the user's, a later one instead of an earlier."""
    sweeps, left_out = [], []
    for text in part["sweeps"]:
        if missing := [variable for variable in re.findall(r"\$(\w+)", text) if not variables.get(variable)]:
            left_out.append(f"without {', '.join(missing)} in the environment there is no {text.partition(' ')[0]}")
            continue
        own = [re.sub(r"\$(\w+)", lambda found: variables[found[1]], word) for word in shlex.split(text, comments=True)]
        sweeps.append(replaced(replaced(shlex.split(part["common"]), own), overrides))
    return Part(
        name, part["published"], shlex.split(part.get("compare", "")), sweeps, list(dict.fromkeys(left_out)), folder
    )


def replaced(words: Sequence[str], later: Sequence[str]) -> list[str]:
    """Put later words in the place of earlier ones of the same key, or within a group that is chosen anew."""
    keys = {_key(word) for word in later}
    kept = [word for word in words if not (_key(word) in keys or _key(word).partition(".")[0] in keys)]
    return [*kept, *later]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def told(part: Part) -> Iterator[str]:
    """Say what a part will run, how much of it is finished, and about how long the rest takes."""
    yield f"\n{part.name} (published: {part.published})"
    for words in part.sweeps:
        yield f"  {shlex.join(['tta', '-m', *words, f'runs_dir={part.folder}'])}"
    yield from (f"  {line}" for line in part.left_out)
    done = {_identity(run.summary["config"]) for run in find_runs([part.folder])} if _has_runs(part.folder) else set()
    jobs = {_identity(config): config for config in configurations(part.sweeps)}
    left = [config for identity, config in jobs.items() if identity not in done]
    yield f"  {len(jobs)} runs, {len(jobs) - len(left)} of them finished before"
    if left:
        images, seconds, device = measured(part.sweeps[0], left[0])
        costs = method_costs()
        methods = [name for config in left if (name := str(config["method"]["_target_"]).rpartition(".")[2].lower())]
        total = sum(images * seconds * costs.get(name, 2.0) for name in methods)
        yield (
            f"  {len(left)} runs of {images} images each, at {1 / seconds:.0f} images/s for source (measured on "
            f"{device}): about {duration(total)}, one after another"
        )


def _has_runs(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*/summary.json"))


def _identity(config: Mapping[str, Any]) -> str:
    return json.dumps(hashed_groups(config), sort_keys=True)


def configurations(sweeps: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Compose the configuration of every run, as ``tta -m`` would."""
    parser = OverridesParser.create()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for words in sweeps:
            choices = [
                list(override.sweep_string_iterator())
                if override.is_sweep_override()
                else [_value(override.input_line)]
                for override in parser.parse_overrides(list(words))
            ]
            keys = [word.partition("=")[0] for word in words]
            later = {key for key in GIVEN_LATER if key in keys}
            composed: dict[tuple[str, ...], DictConfig] = {}
            for values in product(*choices):
                given = dict(zip(keys, values, strict=True))
                fixed = tuple(f"{k}={v}" for k, v in given.items() if k not in later and not k.startswith("hydra"))
                if fixed not in composed:
                    composed[fixed] = hydra.compose("config", list(fixed))
                config = composed[fixed]
                for key in later:
                    OmegaConf.update(config, key, OmegaConf.create(f"v: {given[key]}").v)
                yield plain(config)


def _value(line: str | None) -> str:
    return (line or "").partition("=")[2]


def measured(words: Sequence[str], config: Mapping[str, Any]) -> tuple[int, float, str]:
    """Images of a run, and seconds for each of them through the frozen model, from a few batches of one domain."""
    stream, scenario = (hydra.utils.instantiate(config[part], _convert_="all") for part in ("stream", "scenario"))
    images = sum(len(planned.index) for planned in stream.plan(scenario, config["seed"]))
    first = stream.plan(scenario, config["seed"])[0].visits[0].domain
    batches = TRIAL * config["stream"]["batch_size"]
    limit = min(config["stream"].get("limit") or batches, batches)
    common = [word for word in words if _key(word).partition(".")[0] in ("stream", "model", "device", "precision")]
    with tempfile.TemporaryDirectory() as folder:
        trial = ["method=source", "seed=0", f"stream.limit={limit}", f"runs_dir={folder}", "logger=none"]
        trial += [f"stream.corruptions=[{first}]"] if "corruptions" in config["stream"] else []
        command = [sys.executable, "-m", "tta", *replaced(common, trial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"the trial failed: {(done.stderr or done.stdout).strip().removeprefix('tta: error: ')}")
        (run_,) = find_runs([Path(folder)])
        with (run_.path / "batches.csv").open() as file:
            rows = list(csv.DictReader(file))
    counted = rows[1:] or rows
    return images, statistics.median(float(row["seconds"]) / int(row["n"]) for row in counted), run_.summary["device"]


def method_costs() -> dict[str, float]:
    """Time of each method, as a multiple of the frozen model's."""
    return {
        name.replace("_", ""): float(cost)
        for name, cost in re.findall(r"^\| (\w+) \| ([\d.]+) ", COSTS.read_text(), re.MULTILINE)
    }


def duration(seconds: float) -> str:
    """Write a time for a person."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def run(part: Part, figures: bool) -> list[str]:
    """Run the sweeps, those after a failed one too, and compare; what went wrong is returned."""
    problems = []
    for words in part.sweeps:
        command = [sys.executable, "-m", "tta", "-m", *words, f"runs_dir={part.folder}"]
        if code := subprocess.run(command, check=False).returncode:
            problems.append(f"a sweep ended with exit code {code}")
            if code == 130:
                raise SystemExit(code)
    print(f"\n{part.name}: ours beside {part.published}", flush=True)
    try:
        compare.main(
            [str(part.folder), "--published", part.published, *part.compare, *(["--figures", "--html"] * figures)]
        )
    except SystemExit as error:
        problems.append(str(error))
    return problems


if __name__ == "__main__":
    main()
