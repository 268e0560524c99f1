"""Horizons: the theorem's number by hand, and durations that were observed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ra3gym.abstractions.options import (
    effective_horizon,
    exact_horizon,
    observed_horizon,
    predicted_iterations,
    random_option_mdp,
)
from ra3gym.errors import ConfigError, DataError


def test_predicted_iterations_are_the_theorems() -> None:
    # 1 / (1 - 0.9) * log(2 / (0.01 * 0.1)) = 10 * log(2000)
    assert predicted_iterations(0.9, 2.0, 0.01) == math.ceil(10.0 * math.log(2000.0)) == 77
    assert predicted_iterations(0.0, 2.0, 0.01) == math.ceil(math.log(200.0))
    assert predicted_iterations(0.9, 0.0, 0.01) == 0  # nothing to find
    assert predicted_iterations(0.9, 1.0, 20.0) == 0  # V = 0 is near enough
    assert effective_horizon(0.75) == 4.0


def test_longer_options_shorten_the_exact_horizon() -> None:
    found = [exact_horizon(random_option_mdp(0, mean_duration=m, num_terminals=0), "options") for m in (1.0, 4.0, 8.0)]
    assert [one.effective_horizon for one in found] == pytest.approx([20.0, 5.75, 3.375])
    assert [one.longest_duration for one in found] == pytest.approx([1.0, 4.0, 8.0])
    for name in ("predicted_iterations", "observed_iterations"):
        first, second, third = (getattr(one, name) for one in found)
        assert first > second > third


def test_observed_figures_of_two_episodes_are_those_by_hand() -> None:
    found = observed_horizon([[1, 3], [2]], 0.5)
    assert found.decisions_per_episode.value == 1.5
    assert found.mean_duration.value == 2.0
    assert found.gamma_bar.value == pytest.approx((0.5 + 0.125 + 0.25) / 3.0)
    assert found.gamma_bar_is == "mean"
    assert (found.decisions_per_episode.low, found.decisions_per_episode.high) == (1.0, 2.0)
    assert found.effective_horizon.value == pytest.approx(1.0 / (1.0 - 0.875 / 3.0))
    grouped = observed_horizon([[1, 3], [2]], 0.5, groups=[[0, 1], [1]], least_count=2)
    assert grouped.gamma_bar.value == pytest.approx((0.125 + 0.25) / 2.0)  # group 0 is too small
    assert grouped.gamma_bar_is == "largest group mean"
    assert observed_horizon([[1, 3], [2]], 0.5, groups=[[0, 1], [1]], least_count=1).gamma_bar.value == 0.5
    assert observed_horizon([[1, 3], [2]], 0.5, groups=[[0, 1], [1]]).gamma_bar.value == pytest.approx(0.1875)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """100 samples of 60 episodes with geometric durations, of which about 95 intervals should hold gamma_bar."""
    rng = np.random.default_rng(0)
    truth = 0.9 * 0.25 / (1.0 - 0.9 * 0.75)
    held = 0
    for seed in range(100):
        durations = [rng.geometric(0.25, size=rng.integers(1, 8)) for _ in range(60)]
        found = observed_horizon(durations, 0.9, resamples=300, seed=seed).gamma_bar
        held += found.low <= truth <= found.high
    assert 85 <= held <= 100


def test_groups_find_the_shortest_kind_of_decision() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.integers(3, size=5) for _ in range(200)]
    durations = [np.array([1, 4, 9])[group] for group in groups]
    found = observed_horizon(durations, 0.9, groups=groups)
    assert found.gamma_bar.value == pytest.approx(0.9)
    assert observed_horizon(durations, 0.9).gamma_bar.high < 0.75
    assert found.episodes == 200


def test_one_episode_has_no_interval_and_equal_seeds_agree() -> None:
    alone = observed_horizon([[2, 2]], 0.9)
    assert alone.gamma_bar.value == pytest.approx(0.81)
    assert math.isnan(alone.gamma_bar.low)
    assert math.isnan(alone.effective_horizon.high)
    durations = [[1, 2], [5], [3, 3, 1]]
    assert observed_horizon(durations, 0.9, seed=4) == observed_horizon(durations, 0.9, seed=4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gamma_bar=1\.0"):
        effective_horizon(1.0)
    with pytest.raises(ConfigError, match=r"eps=0\.0 must be positive"):
        predicted_iterations(0.9, 1.0, 0.0)
    with pytest.raises(ConfigError, match=r"gamma=1\.5"):
        observed_horizon([[1]], 1.5)
    for durations, message in (([], "no decision"), ([[]], "no decision"), ([[1, 0]], "at least 1 step")):
        with pytest.raises(DataError, match=message):
            observed_horizon(durations, 0.9)
    with pytest.raises(DataError, match="one number for each decision"):
        observed_horizon([[1, 2]], 0.9, groups=[[0]])
    with pytest.raises(DataError, match="not negative"):
        observed_horizon([[1, 2]], 0.9, groups=[[0, -1]])
