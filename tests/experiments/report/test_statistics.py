"""Statistics against closed forms, simulation and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ra3gym.experiments.report.statistics import (
    area_under_curve,
    bootstrap_interval,
    curve_band,
    estimate_mean,
    mean_interval,
    modes,
    paired_difference,
    paired_ratio,
    steps_to_threshold,
    t_interval,
)

finite = st.floats(-1e3, 1e3, allow_nan=False)


def test_one_value_has_no_interval() -> None:
    low, high = bootstrap_interval([0.3])
    assert math.isnan(low)
    assert math.isnan(high)


def test_equal_values_give_an_interval_of_width_zero() -> None:
    assert bootstrap_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [0.1, math.inf]])
def test_missing_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        bootstrap_interval(values)


def test_interval_of_two_values_is_their_exact_bootstrap_distribution() -> None:
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with chances 1/4, 1/2, 1/4: both tails reach the ends.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)


def test_interval_covers_the_true_mean_about_as_often_as_documented() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval(rng.normal(2.0, 1.0, size=10).tolist(), resamples=1_000, seed=trial)
        covered += low <= 2.0 <= high
    assert 0.86 <= covered / 400 <= 0.95


@pytest.mark.parametrize("n", [3, 5, 10, 19])
def test_intervals_over_few_seeds_cover_the_mean_as_often_as_they_say(n: int) -> None:
    """4,000 simulated studies: a share of 95% has a standard error of 0.34 points."""
    samples = np.random.default_rng(n).normal(2.0, 1.0, size=(4_000, n))
    intervals = [mean_interval(sample.tolist()) for sample in samples]
    covered = np.mean([low <= 2.0 <= high for low, high in intervals])
    assert 0.935 <= covered <= 0.965
    assert intervals[0] == t_interval(samples[0].tolist())


def test_intervals_by_hand() -> None:
    # Mean 2, standard error 1 / sqrt(3), and 4.3027 standard errors to each side with 2 degrees of freedom.
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert estimate_mean([0.0, 0.0, 0.3], bounds=(0.0, 1.0)).low == 0.0
    many = np.random.default_rng(0).normal(size=20).tolist()
    assert mean_interval(many) == bootstrap_interval(many)


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.6], [0.5, 0.5]])
def test_two_values_have_no_interval(values: list[float]) -> None:
    assert all(math.isnan(end) for end in mean_interval(values))
    estimate = estimate_mean(values)
    assert math.isnan(estimate.low)
    assert estimate.values == tuple(values)


def test_modes_are_two_groups_only_where_the_values_leave_a_wide_gap() -> None:
    assert [len(group) for group in modes([0.0, 1.3, 0.5, 26.0, 0.2, 32.0])] == [4, 2]
    assert len(modes([0.0, 0.1, 0.2, 9.0])) == 1
    assert len(modes([0.0, 0.1, 0.2, 0.3, 9.0])) == 1
    assert len(modes([5.0] * 6)) == 1
    assert [len(modes([0.0, 0.0, 0.0, 0.001, 0.001], least_gap=gap)) for gap in (0.0, 0.05)] == [2, 1]
    normal = np.random.default_rng(0).normal(size=(2_000, 10))
    assert np.mean([len(modes(sample.tolist())) > 1 for sample in normal]) < 0.01


@given(st.lists(finite, min_size=2, max_size=12))
def test_interval_lies_within_the_values_and_is_deterministic(values: list[float]) -> None:
    low, high = bootstrap_interval(values, resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_interval(values, resamples=200)


def test_estimate_of_the_mean() -> None:
    estimate = estimate_mean([1.0, 2.0, 6.0])
    assert (estimate.mean, estimate.n) == (3.0, 3)
    assert estimate.low < 3.0 < estimate.high
    assert estimate.values == (1.0, 2.0, 6.0)


def test_paired_difference_uses_common_seeds_with_values_only() -> None:
    difference = paired_difference({1: 0.5, 2: 0.6, 3: None, 4: 0.9}, {1: 0.4, 2: 0.7, 3: 0.1, 5: 0.2})
    assert difference.n == 2
    assert difference.mean == pytest.approx(0.0)
    assert difference.wins == 1
    assert not difference.excludes_zero


def test_a_constant_shift_is_found_exactly_whatever_the_seeds_spread() -> None:
    b = {seed: float(seed) for seed in range(10)}
    difference = paired_difference({seed: value + 0.25 for seed, value in b.items()}, b)
    assert (difference.mean, difference.low, difference.high) == (0.25, 0.25, 0.25)
    assert difference.wins == difference.n == 10
    assert difference.excludes_zero


@given(st.dictionaries(st.integers(0, 20), st.tuples(finite, finite), min_size=1))
def test_paired_difference_changes_sign_with_its_arguments(pairs: dict[int, tuple[float, float]]) -> None:
    a = {seed: pair[0] for seed, pair in pairs.items()}
    b = {seed: pair[1] for seed, pair in pairs.items()}
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.mean == pytest.approx(-back.mean)
    ties = sum(x == y for x, y in pairs.values())
    assert forth.wins + back.wins + ties == forth.n


def test_no_common_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="no seed"):
        paired_difference({1: 0.5}, {2: 0.5})
    with pytest.raises(ValueError, match="no seed"):
        paired_ratio({1: 5.0}, {2: 5.0}, cap=10)


def test_paired_ratio_is_the_geometric_mean() -> None:
    ratio = paired_ratio({1: 10.0, 2: 40.0, 3: 20.0}, {1: 20.0, 2: 20.0, 3: 20.0}, cap=100)
    assert ratio.ratio == pytest.approx(1.0)
    assert (ratio.wins, ratio.n, ratio.bound) == (1, 3, "exact")
    assert ratio.values == pytest.approx((0.5, 2.0, 1.0))
    half = 4.302653 / 3**0.5 * math.log(2)
    assert [ratio.low, ratio.high] == pytest.approx([math.exp(-half), math.exp(half)])


def test_censored_runs_count_at_the_cap_and_mark_the_bound() -> None:
    ratio = paired_ratio({1: 30.0, 2: 50.0}, {1: 60.0, 2: None}, cap=100)
    assert ratio.ratio == pytest.approx(0.5)
    assert (ratio.bound, ratio.censored_a, ratio.censored_b) == ("upper", 0, 1)
    assert paired_ratio({1: None}, {1: 50.0}, cap=100).bound == "lower"
    assert paired_ratio({1: None, 2: 1.0}, {1: 50.0, 2: None}, cap=100).bound == "unknown"


def test_costs_above_the_cap_are_refused_and_costs_below_one_step_count_as_one() -> None:
    with pytest.raises(ValueError, match="above cap=100"):
        paired_ratio({1: 101.0}, {1: 5.0}, cap=100)
    assert paired_ratio({1: 0.0}, {1: 4.0}, cap=100).ratio == pytest.approx(0.25)


@given(st.dictionaries(st.integers(0, 9), st.tuples(st.floats(1, 100), st.floats(1, 100)), min_size=1))
def test_ratio_inverts_with_its_arguments(pairs: dict[int, tuple[float, float]]) -> None:
    a = {seed: pair[0] for seed, pair in pairs.items()}
    b = {seed: pair[1] for seed, pair in pairs.items()}
    forth, back = paired_ratio(a, b, cap=100), paired_ratio(b, a, cap=100)
    assert forth.ratio * back.ratio == pytest.approx(1.0)


def test_area_is_the_normalized_mean_height() -> None:
    assert area_under_curve([(0, 0.0), (10, 1.0)]) == pytest.approx(0.5)
    assert area_under_curve([(0, 0.0), (1, 1.0), (3, 1.0)]) == pytest.approx(2.5 / 3)
    assert area_under_curve([(5, 0.7)]) == pytest.approx(0.7)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.1, 50), st.floats(0, 100))
def test_area_does_not_depend_on_the_unit_of_x_and_stays_in_range(
    heights: list[float], scale: float, shift: float
) -> None:
    plain = area_under_curve([(float(i), y) for i, y in enumerate(heights)])
    scaled = area_under_curve([(i * scale + shift, y) for i, y in enumerate(heights)])
    assert scaled == pytest.approx(plain, abs=1e-6)
    assert min(heights) - 1e-9 <= plain <= max(heights) + 1e-9


def test_threshold_needs_a_full_window() -> None:
    curve = [(1.0, 0.9), (2.0, 0.0), (3.0, 0.6), (4.0, 0.6), (5.0, 0.9)]
    assert steps_to_threshold(curve, 0.7) == 1.0
    assert steps_to_threshold(curve, 0.7, window=3) == 5.0
    assert steps_to_threshold(curve, 0.7, window=4) is None
    assert steps_to_threshold(curve, 0.1, window=6) is None
    assert steps_to_threshold(curve, 0.95) is None


def test_threshold_is_interpolated_between_measured_points() -> None:
    curve = [(100.0, 0.2), (200.0, 0.4), (400.0, 0.8)]
    assert steps_to_threshold(curve, 0.5, interpolate=True) == pytest.approx(250.0)
    assert steps_to_threshold(curve, 0.5) == 400.0
    assert steps_to_threshold(curve, 0.1, interpolate=True) == 100.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1), st.integers(1, 5))
def test_a_higher_threshold_is_never_reached_earlier(heights: list[float], threshold: float, window: int) -> None:
    curve = [(float(i), y) for i, y in enumerate(heights)]
    easy = steps_to_threshold(curve, threshold * 0.9, window)
    hard = steps_to_threshold(curve, threshold, window)
    assert hard is None or (easy is not None and easy <= hard)


@pytest.mark.parametrize(
    ("curve", "message"),
    [([], "no values"), ([(1.0, 0.1), (1.0, 0.2)], "increase strictly"), ([(0.0, math.nan)], "finite")],
)
def test_malformed_curves_are_refused(curve: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        area_under_curve(curve)
    with pytest.raises(ValueError, match=message):
        steps_to_threshold(curve, 0.5)


def test_band_is_the_pointwise_mean_on_the_common_range() -> None:
    band = curve_band([[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)], [(0.0, 2.0), (1.5, 2.0)], [(0.0, 1.0), (1.0, 1.5)]])
    assert [(x, mean) for x, mean, _, _ in band] == [(0.0, 1.0), (1.0, 1.5)]
    assert band[0][2:] == pytest.approx(mean_interval([0.0, 2.0, 1.0]))
    assert band[1][2:] == pytest.approx(mean_interval([1.0, 2.0, 1.5]))
    assert curve_band([[(0.0, 0.0)], [(0.0, 1.0)]]) == [(0.0, 0.5, 0.5, 0.5)]


def test_band_of_one_curve_has_width_zero() -> None:
    assert curve_band([[(0.0, 0.1), (1.0, 0.2)]]) == [(0.0, 0.1, 0.1, 0.1), (1.0, 0.2, 0.2, 0.2)]
