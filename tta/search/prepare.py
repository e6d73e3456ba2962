"""From a configuration to a search: what may be tried, on what, and where the trials are kept."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from tta.cli import dotted_keys
from tta.config.instantiate import build, chosen_options, instantiate, plain, run_name
from tta.methods import Method
from tta.models import Backbone
from tta.runs.fingerprint import RESULT_FORMAT, hashed_groups
from tta.search.space import Space, Values, parse
from tta.search.study import Study
from tta.search.trials import Evaluation
from tta.streams import Scenario, Stream
from tta.utils.devices import choose_device, choose_precision, to_device
from tta.utils.validation import check_float, check_fraction, check_int

SEARCHED = ("method", "objective", "optimizer")
"""Parts whose numbers can be searched: all others make another stream or another model."""

ADAPT_ON = ("all", "share")
"""Images that arrive in a trial."""

SET_HERE = {"part": "all", "share": None, "share_seed": 0}
"""Options of the scenario that the search sets itself."""


@dataclass
class Search:
    """All that a trial needs, and what determines what it gives."""

    evaluation: Evaluation
    space: Space
    configuration: dict[str, Any]
    first: Values | None
    folder: Path
    options: dict[str, Any]
    objective: dict[str, Any]
    title: str

    def open(self) -> Study:
        """Open the study, or make it."""
        options = self.options
        return Study(
            self.folder,
            self.configuration,
            self.space,
            options["seed"],
            options["trials"],
            self.first,
            options["prune"],
        )


def checked(config: DictConfig) -> dict[str, Any]:
    """Read ``search`` without its space.

    Raises:
        ValueError: for a value out of range.
    """
    options = plain(config.search)
    check_int("seed", config.seed, 0)
    for key, least in (("trials", 1), ("workers", 1), ("seed", 0), ("share_seed", 0)):
        check_int(f"search.{key}", options[key], least)
    check_fraction("search.share", options["share"])
    check_float("search.prune", options["prune"], 0, 1)
    if options["adapt_on"] not in ADAPT_ON:
        raise ValueError(f"search.adapt_on must be one of {', '.join(ADAPT_ON)}; got {options['adapt_on']!r}")
    seeds = options["seeds"]
    if not isinstance(seeds, list) or not seeds:
        raise ValueError(f"search.seeds must be a list of seeds, e.g. [0,1,2]; got {seeds!r}")
    for seed in seeds:
        check_int("each of search.seeds", seed, 0)
    if not isinstance(options["name"], str) or not re.fullmatch(r"[A-Za-z]\w*", options["name"]):
        raise ValueError(f"search.name must be letters, digits and _, as in dem_star; got {options['name']!r}")
    for key, untouched in SET_HERE.items():
        if config.scenario.get(key, untouched) != untouched:
            raise ValueError(f"tta-search sets scenario.{key} itself: give search.share and search.share_seed instead")
    return options


def prepare(config: DictConfig) -> Search:
    """Load model and images, and say what may be tried.

    Raises:
        ValueError: if the configuration does not make sense.
        OSError: if files are missing.
    """
    options = checked(config)
    ranges = parse(options["space"], lambda key: _present(config, key))
    for one in ranges:
        _check_effect(config, one.key, one.low, one.high)
    space = Space(ranges, _allowed(config))
    present = {key: OmegaConf.select(config, key) for key in space.keys}
    first = space.clean(present) if space.holds(present) else None
    if first is None and space.grid is not None:
        _ = space.grid  # tells if nothing is allowed
    config = copy.deepcopy(config)
    labelled = {"part": "share", "share": options["share"], "share_seed": options["share_seed"]}
    if options["adapt_on"] == "share":
        config.scenario.update(labelled)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    torch.manual_seed(config.seed)
    torch.backends.cudnn.deterministic = True
    scenario, stream = build(config, "scenario", Scenario), build(config, "stream", Stream)
    backbone = build(config, "model", Backbone)
    backbone.match_classes(stream.num_classes, stream.classes)
    for domain in stream.domains:
        if not len(domain.labels) or int(domain.labels.min()) < 0:
            raise ValueError(f"tta-search chooses with labels, but {domain} has images without: choose another stream")
    stream.prepare()
    backbone = to_device(backbone, device)

    def make_method(values: Values) -> Method:
        return build(_with(config, values), "method", Method, backbone=backbone)  # type: ignore[type-abstract]

    share = replace(scenario, **labelled)
    evaluation = Evaluation(make_method, stream, scenario, share, config.seed, device, precision)
    method = make_method(first or (space.grid or [present])[0])
    evaluation.check(method)
    configuration = _configuration(
        config, space, first, backbone.weights_id, f"{stream.digest} {method.data_digest}".strip()
    )
    objective = plain(config.objective)
    folder = _folder(config, configuration, stream.subset)
    return Search(evaluation, space, configuration, first, folder, options, objective, _title())


def _present(config: DictConfig, key: str) -> Any:
    """Give the value that a key has before the search.

    Raises:
        ValueError: if there is no such key, or it is not one to search.
    """
    parts = key.split(".")
    if parts[0] not in SEARCHED:
        raise ValueError(f"search.space can hold numbers of {', '.join(SEARCHED)}; {key} is none of them")
    if (value := OmegaConf.select(config, key)) is None:
        known = [
            name
            for part in SEARCHED
            if part in config
            for name in dotted_keys(plain(config[part], resolve=False), f"{part}.")
        ]
        close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"search.space: there is no key {key!r} with a value in this configuration; {hint}`tta-search --cfg job` "
            "shows all keys, and search=lr, or search.space of another objective, has others"
        )
    for length in range(1, len(parts)):
        node = OmegaConf.select(config, ".".join(parts[:length]))
        if OmegaConf.is_interpolation(node, parts[length]):
            place = ".".join(parts[: length + 1])
            target = plain(node, resolve=False)[parts[length]]
            raise ValueError(f"search.space: {place} is only {target} here: give the range of that instead of {key}")
    return value


def _check_effect(config: DictConfig, key: str, low: float, high: float) -> None:
    resolved = [plain(_with(config, {key: value}).method) for value in (low, high)]
    if resolved[0] == resolved[1]:
        raise ValueError(f"search.space: {key} changes nothing in method={chosen_options().get('method', 'custom')}")


def _with(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Copy a configuration with other values in it."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    return config


def _allowed(config: DictConfig) -> Callable[[Values], bool]:
    """Say whether values go together: whether the objective takes them. DEM itself knows proposition A.1."""
    objective = DictConfig({"objective": copy.deepcopy(config.objective)})

    def allowed(values: Values) -> bool:
        own = {key: value for key, value in values.items() if key.startswith("objective.")}
        if not own:
            return True
        for key, value in own.items():
            OmegaConf.update(objective, key, value)
        try:
            instantiate(objective.objective)
        except InstantiationException as error:
            if isinstance(error.__cause__, ValueError):
                return False
            raise
        return True

    return allowed


def _configuration(config: DictConfig, space: Space, first: Values | None, weights: str, data: str) -> dict[str, Any]:
    """Put together all that determines what the trials give."""
    others = _with(config, dict.fromkeys(space.keys))  # whatever the searched ones are
    resolved = plain(others)
    ranges = {f"search.space.{one.key}": {k: v for k, v in asdict(one).items() if k != "key"} for one in space.ranges}
    return {
        "format": RESULT_FORMAT,
        "weights": weights,
        "data": data,
        **hashed_groups(resolved),
        **ranges,
        "first": first,
        **{f"search.{key}": resolved["search"][key] for key in ("seed", "prune", "share", "share_seed", "adapt_on")},
    }


def _folder(config: DictConfig, configuration: dict[str, Any], subset: str | None) -> Path:
    if config.search.dir is not None:
        return Path(config.search.dir).expanduser()
    identity = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:10]
    return Path(config.runs_dir).expanduser() / "search" / f"{run_name(plain(config), subset)}-{identity}"


def _title() -> str:
    choices = chosen_options()
    return ", ".join(choices.get(part, "custom") for part in ("stream", "scenario", "model", "method"))
