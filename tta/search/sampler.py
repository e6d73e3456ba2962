"""Which values are tried next, and which trials are given up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tta.search.space import Space, Values

TAKEN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
"""States of trials that count; one whose process was killed is ``FAIL``, and counts for nothing."""

RANDOM_TRIALS = 10
"""Trials drawn at random before there is anything to learn from; Optuna's own number."""
PROPOSALS = 10
"""Proposals of TPE in which something new and allowed must be."""
DRAWS = 10_000
"""Random draws in which something allowed must be."""


class AllowedTPE(BaseSampler):
    """TPE (Bergstra et al., NIPS 2011), as Optuna has it, over what is allowed and has not been tried.

    Trial k is a function of the seed, of k and of the trials before it, so that a search that was cut off goes on as
    if it had not been.

    Args:
        space: what may be tried.
        seed: of the draws.
        first: values of the first trial; ``None`` draws them too.
    """

    def __init__(self, space: Space, seed: int, first: Values | None = None) -> None:
        self.space = space
        self.seed = seed
        self.first = first

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All keys, which are drawn together."""
        return self.space.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw values for all keys.

        Raises:
            ValueError: if nothing allowed was found.
        """
        others = [one for one in study.get_trials(deepcopy=False, states=TAKEN) if one.number != trial.number]
        if not others and self.first is not None:
            return self.first
        seed = int(np.random.SeedSequence([self.seed, len(others)]).generate_state(1)[0])
        tried = [one.params for one in others]
        tpe = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        proposed: dict[str, Any] = {}
        for _ in range(PROPOSALS):
            if not (proposed := tpe.sample_relative(study, trial, search_space)):
                break  # too few trials so far
            values = self.space.clean(proposed)
            if values not in tried and self.space.allowed(values):
                return values
        return self._otherwise(study, trial, tried, self.space.clean(proposed) if proposed else None, seed)

    def _otherwise(
        self, study: Study, trial: FrozenTrial, tried: Sequence[Values], proposed: Values | None, seed: int
    ) -> Values:
        """Draw at random or, on a grid, take the nearest to what was proposed."""
        if self.space.grid is not None:
            left = [values for values in self.space.grid if values not in tried]
            shuffled = [left[number] for number in np.random.default_rng(seed).permutation(len(left))]
            return shuffled[0] if proposed is None else min(shuffled, key=lambda at: self.space.distance(at, proposed))
        random = RandomSampler(seed)
        for _ in range(DRAWS):
            drawn = {
                key: random.sample_independent(study, trial, key, distribution)
                for key, distribution in self.space.distributions.items()
            }
            values = self.space.clean(drawn)
            if values not in tried and self.space.allowed(values):
                return values
        raise ValueError(f"search.space: of {DRAWS} random draws none is new and goes together; choose other ranges")

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Fail: all keys are drawn together."""
        raise AssertionError(f"{param_name} is no key of the search")


class BehindOthers(BasePruner):
    """Gives up a trial whose accuracy so far is less than that of a share of the trials that came as far.

    Optuna's own rules compare the *best* value so far, which an easy domain at the beginning would set for good.

    Args:
        share: 0.5 asks for the median; 0 gives up none.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Say whether to give up the trial after its last report."""
        step = trial.last_step
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        others = [one.intermediate_values[step] for one in done if step in one.intermediate_values]
        if step is None or not self.share or len(others) < RANDOM_TRIALS:
            return False
        return trial.intermediate_values[step] < float(np.quantile(others, self.share))
