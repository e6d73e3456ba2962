"""What comes of a search: a configuration that ``tta`` takes, and ordinary runs that measure it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf, open_dict

from tta.cli import CONFIGS
from tta.config.instantiate import chosen_options
from tta.search.report import before, words
from tta.utils.paths import atomic_file

if TYPE_CHECKING:
    from tta.search.prepare import Search
    from tta.search.study import Done

PARTS = ("rest", "all")


@dataclass(frozen=True)
class Place:
    """Where the result goes: ``<folder>/<group>/<name>.yaml``."""

    folder: Path
    group: str  # objective, or experiment where other keys than the objective's were searched
    name: str

    @property
    def file(self) -> Path:
        """The configuration."""
        return self.folder / self.group / f"{self.name}.yaml"

    @property
    def command(self) -> str:
        """What takes it."""
        return f"tta --config-dir {shlex.quote(str(self.folder))} {self.group}={self.name}"


@dataclass(frozen=True)
class Measured:
    """A finished run of the result, or of what it is measured against."""

    label: str
    part: str
    seed: int
    accuracy: float
    uses_labels: bool


def place(config: DictConfig, search: Search) -> Place:
    """Decide where the result goes.

    Raises:
        ValueError: if something else has that place.
    """
    folder = search.options["config_dir"] or next(iter(own_folders()), None) or search.folder / "configs"
    group = "objective" if all(key.startswith("objective.") for key in search.space.keys) else "experiment"
    where = Place(Path(folder).expanduser(), group, search.options["name"])
    if (CONFIGS / group / where.file.name).exists():
        raise ValueError(f"search.name={where.name} is the name of an {group} that is there already: choose another")
    if where.file.exists():
        found = OmegaConf.load(where.file)
        if OmegaConf.select(found, "uses_labels.study") != search.folder.name:
            raise ValueError(f"{where.file} is not of this search: choose another search.name or search.config_dir")
    return where


def write_result(where: Place, search: Search, done: Sequence[Done], best: Done) -> dict[str, Any]:
    """Write the configuration.

    Returns:
        What it says of the labels used.
    """
    assert best.accuracy is not None
    origin = {
        "keys": list(search.space.keys),
        "study": search.folder.name,
        "trials": len(done),
        "share": search.options["share"],
        "share_seed": search.options["share_seed"],
        "accuracy": round(best.accuracy, 6),
        "weights": search.configuration["weights"],
        "data": search.configuration["data"],
        "date": datetime.now(UTC).date().isoformat(),
    }
    lines = (
        "# @package _global_",
        f"# {words(best.values)}: chosen by tta-search with labels. An upper bound, not a fair method.",
        f"#   {where.command}",
        f"# {origin['date']}: the best of {len(done)} trials on {100 * origin['share']:g} % of {search.title},",
        f"# {100 * best.accuracy:.2f} % there{before(search.first, done)}.",
    )
    content: dict[str, Any] = {}
    if where.group == "objective":
        content["objective"] = {**search.objective}
    elif any(key.startswith("objective.") for key in best.values):
        content["defaults"] = [{"override /objective": chosen_options()["objective"]}, "_self_"]
    for key, value in best.values.items():
        *parts, last = key.split(".")
        node = content
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    content["uses_labels"] = origin
    with atomic_file(where.file) as file:
        file.write_text("\n".join(lines) + "\n" + OmegaConf.to_yaml(OmegaConf.create(content)))
    return origin


def measure(search: Search, where: Place, best: Done, origin: Mapping[str, Any]) -> list[Measured]:
    """Run the result, and what it is measured against, on the rest and on all of the stream."""
    measured = []
    for part in PARTS:
        scenario = [] if part == "all" else [f"scenario.part={part}", f"scenario.share={origin['share']}"]
        if part != "all" and origin["share_seed"]:
            scenario.append(f"scenario.share_seed={origin['share_seed']}")
        for label, overrides, uses_labels in _variants(search, where, best, origin):
            for seed in search.options["seeds"]:
                path = _run([*overrides, *scenario, f"seed={seed}"], where.folder)
                accuracy = json.loads((path / "summary.json").read_text())["accuracy"]
                measured.append(Measured(label, part, seed, accuracy, uses_labels))
    return measured


def _variants(
    search: Search, where: Place, best: Done, origin: Mapping[str, Any]
) -> Iterator[tuple[str, list[str], bool]]:
    """Give each row of the table its name, its part of the command, and whether it owes something to labels."""
    given = _given(best.values)
    mark = f"+uses_labels={_literal(origin)}"  # no key of the configuration: only what was chosen so has it
    if where.group == "objective":
        yield where.name, [*_without_objective(given), f"objective={where.name}"], True
    else:
        chosen = [f"{key}={value}" for key, value in best.values.items()]
        yield where.name, [*_with_objective(given), *chosen, mark], True
    for label, overrides in (search.options.get("beside") or {}).items():
        if not any(word.startswith("objective=") for word in overrides):
            yield label, [*_with_objective(_given(())), *overrides], False
            continue
        # Another objective, but as the result otherwise: at the same learning rate, say, if that was searched too.
        others = [f"{key}={value}" for key, value in best.values.items() if not key.startswith("objective.")]
        yield label, [*_without_objective(given), *others, *[mark] * bool(others), *overrides], bool(others)


def _given(searched: Iterable[str]) -> list[str]:
    """The user's own words, but for those that the search has taken over."""
    taken = (*searched, "scenario.part", "scenario.share", "scenario.share_seed", "seed", "uses_labels")
    words = HydraConfig.get().overrides.task
    return [word for word in words if _key(word).partition(".")[0] != "search" and _key(word) not in taken]


def _without_objective(given: Sequence[str]) -> list[str]:
    return [word for word in given if _key(word).partition(".")[0] != "objective"]


def _with_objective(given: Sequence[str]) -> list[str]:
    """Name the objective, which ``tta-search`` may have by itself."""
    named = any(_key(word) == "objective" for word in given)
    choice = chosen_options().get("objective")
    return [*given] if named or choice is None else [f"objective={choice}", *given]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def _literal(value: Any) -> str:
    """Write a value in the grammar of overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    return "'" + value.replace("'", "\\'") + "'" if isinstance(value, str) else json.dumps(value)


def own_folders() -> list[str]:
    """Folders of configurations that were given on the command line."""
    sources = HydraConfig.get().runtime.config_sources
    return [
        source.path for source in sources if source.provider in ("command-line", "hydra.searchpath in command-line")
    ]


@contextmanager
def _as_if_typed(words: Sequence[str]) -> Iterator[None]:
    """Let ``tta`` take these words for its own, though another command of Hydra's is going on."""
    state, typed = Singleton.get_state(), sys.argv
    try:
        GlobalHydra.instance().clear()
        sys.argv = ["tta", *words]
        yield
    finally:
        sys.argv = typed
        Singleton.set_state(state)


def _run(overrides: Sequence[str], folder: Path) -> Path:
    """Run ``tta`` in this process, with configurations from that folder too."""
    folders = list(dict.fromkeys([*own_folders(), str(folder.resolve())]))
    path = "hydra.searchpath=[" + ",".join(f"'file://{place}'" for place in folders) + "]"
    with _as_if_typed(["--config-dir", str(folder), *overrides]):
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra.compose("config", [*overrides, path], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        from tta.experiment import run_experiment

        return Path(run_experiment(config, sys.argv).path)
