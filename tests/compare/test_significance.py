from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tta.compare.significance import differences, holm, p_value, smallest_p


def signed_rank(values: np.ndarray) -> float:
    """Two-sided p of the signed-rank test by trying every sign, for values without ties.

    Zeros are ranked with the others and have no sign (Pratt 1959): what differs from the baseline ranks the higher.
    """
    ranks = np.abs(values).argsort().argsort() + 1
    found = ranks[values > 0].sum()
    signed = ranks[values != 0]
    half = signed.sum() / 2
    sums = [
        sum(r for r, s in zip(signed, signs, strict=True) if s)
        for signs in itertools.product((0, 1), repeat=len(signed))
    ]
    return float(np.mean([abs(s - half) >= abs(found - half) for s in sums]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1000, 1000).filter(bool), min_size=2, max_size=8, unique_by=abs))
def test_wilcoxon__is_the_exact_one(values: list[int]) -> None:
    found = p_value(np.array(values, dtype=float), "wilcoxon")
    assert found == pytest.approx(signed_rank(np.array(values)))
    assert found is not None
    assert found >= smallest_p(len(values)) - 1e-12


def test_wilcoxon__zeros_keep_their_ranks() -> None:
    for values in ([0, 0, 1, 2, -3, 4, 5, 6, 7], [0, 0, -2, -1, 4, 5, 3, 6], [0, 1, 2, 3, -4, 5]):
        found = np.array(values, dtype=float)
        assert p_value(found, "wilcoxon") == pytest.approx(signed_rank(found))
        assert signed_rank(found) != signed_rank(found[found != 0])


def test_wilcoxon__one_sign_gives_the_smallest_p() -> None:
    assert p_value(np.array([1.0, 2, 3, 4, 5]), "wilcoxon") == smallest_p(5) == 0.0625
    assert p_value(np.arange(1.0, 16), "wilcoxon") == pytest.approx(smallest_p(15))


def test_t__is_students() -> None:
    values = np.array([1.0, 2.0, 3.0])
    assert p_value(values, "t") == pytest.approx(0.0741799)  # t = 2 sqrt(3), two degrees of freedom


def test_p_value__none_where_there_is_nothing_to_test() -> None:
    for test in ("wilcoxon", "t"):
        assert p_value(np.array([1.0]), test) is None
        assert p_value(np.zeros(15), test) == 1.0
    assert p_value(np.array([1.0, 1.0, 1.0]), "t") is None
    assert p_value(np.array([1.0, 1.0, 1.0]), "wilcoxon") == 0.25
    assert differences({"a": np.zeros((0, 15))}, "wilcoxon")["a"].mean is None


def test_differences__more_seeds_are_no_more_evidence() -> None:
    once = np.random.default_rng(0).normal(0.3, 1, (1, 15))
    ten = np.repeat(once, 10, axis=0)
    one, many = differences({"one": once, "ten": ten}, "wilcoxon").values()
    assert one.p == many.p
    assert one.std is None
    assert many.std == pytest.approx(0)


def test_differences__are_paired_by_seed() -> None:
    found = differences({"a": np.array([[1.0, 3.0], [1.0, 3.0]])}, "wilcoxon")["a"]
    assert found.mean == pytest.approx(2)
    assert found.std == pytest.approx(0)
    assert (found.better, found.worse) == (2, 0)


def test_differences__sample_deviation_over_seeds() -> None:
    found = differences({"a": np.array([[0.0, 2.0], [2.0, 4.0], [4.0, 9.0]])}, "wilcoxon")["a"]
    assert found.mean == pytest.approx(3.5)
    means = (1.0, 3.0, 6.5)
    assert found.std == pytest.approx((sum((mean - 3.5) ** 2 for mean in means) / 2) ** 0.5)


def test_differences__last_bits_leave_ranks_equal() -> None:
    values = np.array([0.1 + 0.2, 0.3, -0.3, 0.5, 0.4, 0.7, 0.6])
    exact = np.array([0.3, 0.3, -0.3, 0.5, 0.4, 0.7, 0.6])
    one, other = (differences({"a": v[None]}, "wilcoxon")["a"].p for v in (values, exact))
    assert one == other


def test_holm__is_that_of_the_textbook() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({}) == {}


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm__lies_between_p_and_bonferroni(values: dict[str, float]) -> None:
    for label, corrected in holm(values).items():
        assert values[label] <= corrected <= min(1, len(values) * values[label])
