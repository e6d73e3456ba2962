"""Differences to a baseline and their significance, paired over seeds and domains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Test = Literal["wilcoxon", "t"]
TESTS: tuple[Test, ...] = get_args(Test)
NAMES = {"wilcoxon": "Wilcoxon signed-rank test", "t": "paired t test"}

DECIMALS = 9
"""Differences that agree in these are equal: sums of fractions differ in the last bits."""


@dataclass(frozen=True)
class Difference:
    """Accuracy less that of the baseline, in points; ``None`` where there is nothing to pair."""

    mean: float | None = None  # over seeds and domains
    std: float | None = None  # sample standard deviation over seeds, of the mean over domains
    better: int = 0  # domains that are better than with the baseline, over seeds
    worse: int = 0
    p: float | None = None  # two-sided, of this comparison alone
    p_holm: float | None = None  # corrected for all the comparisons with this baseline


def differences(pairs: Mapping[str, np.ndarray], test: Test) -> dict[str, Difference]:
    """Compare each row with the baseline.

    Seeds draw the order of the same images, so they are no independent samples of what a method is worth: differences
    are averaged over seeds first, and tested over the domains, as Demšar (JMLR 2006) does over data sets. Taking each
    (seed, domain) for a sample would make p small with nothing but more seeds. Domains are corruptions of the same
    images too; the test is about corruptions like these, not about other images. The p of all rows are corrected
    after Holm (1979).

    Args:
        pairs: for each row, accuracy less that of the baseline, in points (S, D); S may be 0.
        test: Wilcoxon's signed-rank test (zeros after Pratt), or the t test, which takes the differences for normal.
    """
    found = {label: _difference(values, test) for label, values in pairs.items()}
    corrected = holm({label: each.p for label, each in found.items() if each.p is not None})
    return {
        label: Difference(each.mean, each.std, each.better, each.worse, each.p, corrected.get(label))
        for label, each in found.items()
    }


def _difference(values: np.ndarray, test: Test) -> Difference:
    seeds = len(values)
    if seeds == 0:
        return Difference()
    domains = values.mean(axis=0).round(DECIMALS)
    return Difference(
        mean=float(values.mean()),
        std=float(values.mean(axis=1).std(ddof=1)) if seeds > 1 else None,
        better=int((domains > 0).sum()),
        worse=int((domains < 0).sum()),
        p=p_value(domains, test),
    )


def p_value(values: np.ndarray, test: Test) -> float | None:
    """Two-sided p of the hypothesis that paired differences (D,) have their centre at zero; of one, there is none."""
    if len(values) < 2:
        return None
    if np.ptp(values) == 0 and (values[0] == 0 or test == "t"):
        return 1.0 if values[0] == 0 else None  # equal differences have no deviation that t could be measured in
    from scipy import stats

    if test == "t":
        return float(stats.ttest_1samp(values, 0.0).pvalue)
    return float(stats.wilcoxon(values, zero_method="pratt").pvalue)


def smallest_p(domains: int) -> float:
    """The smallest p that the signed-rank test can give: all differences have the same sign."""
    return 2.0 ** (1 - domains)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Correct p values for their number, after Holm (Scandinavian Journal of Statistics 6, 1979)."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for number, label in enumerate(sorted(values, key=lambda label: values[label])):
        largest = max(largest, min(1.0, (len(values) - number) * values[label]))
        corrected[label] = largest
    return corrected
