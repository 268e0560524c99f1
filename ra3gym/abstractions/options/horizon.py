"""How long decisions last, and what follows from it: gamma_bar, the effective horizon, value iteration's sweeps.

The convergence theorem of RA3 (arXiv 2509.25810) says that value iteration over actions of random duration tau needs

    N >= 1 / (1 - gamma_bar) * log(R_max / (eps (1 - gamma_bar))),     gamma_bar = sup E[gamma^tau | s, z],

iterations to come within eps of V*. The proof of what we use takes two lines: from V = 0 the error after N sweeps is at
most `gamma_bar^N max|V*|`, and `max|V*| <= R_max / (1 - gamma_bar)`, where R_max bounds the expected discounted reward
`|R(s, z)|` of one **decision**. The rest follows from `log(1 / gamma_bar) >= 1 - gamma_bar`. (With the largest reward
of a primitive *step* as R_max, the bound is false: an option collects many rewards.) Durations count primitive steps:
lines or tokens of a program, steps of an MDP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.options.mdp import Actions, FloatArray, IntArray, OptionMDP
from ra3gym.abstractions.options.solvers import value_iteration
from ra3gym.errors import ConfigError, DataError


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap interval; `low` and `high` are NaN with a single episode."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ObservedHorizon:
    """An estimate from observed durations; see `observed_horizon`.

    Attributes:
        decisions_per_episode: their mean.
        mean_duration: of a decision, in primitive steps.
        gamma_bar: an estimate of `sup E[gamma^tau | s, z]`.
        gamma_bar_is: "mean" for the average of gamma^tau over decisions, which is at most the sup. "largest group mean"
            for the largest average in a group, which noise raises where groups are small.
        episodes: how many were observed.
    """

    decisions_per_episode: Interval
    mean_duration: Interval
    gamma_bar: Interval
    gamma_bar_is: Literal["mean", "largest group mean"]
    episodes: int

    @property
    def effective_horizon(self) -> Interval:
        """`1 / (1 - gamma_bar)` in decisions, and at the ends of its interval."""
        return Interval(*(1.0 / (1.0 - x) for x in (self.gamma_bar.value, self.gamma_bar.low, self.gamma_bar.high)))


@dataclass(frozen=True)
class ExactHorizon:
    """The horizon of a known MDP over a set of its actions.

    Attributes:
        gamma_bar: `sup E[gamma^tau | s, z]` over legal actions.
        reward_bound: R_max, of one decision.
        longest_duration: the largest expected duration of a legal action, in primitive steps.
        eps: the accuracy of value iteration, in units of return.
        predicted_iterations: how many sweeps the theorem predicts.
        observed_iterations: how many sweeps value iteration needs.
    """

    gamma_bar: float
    reward_bound: float
    longest_duration: float
    eps: float
    predicted_iterations: int
    observed_iterations: int

    @property
    def effective_horizon(self) -> float:
        return effective_horizon(self.gamma_bar)


def effective_horizon(gamma_bar: float) -> float:
    """Return `1 / (1 - gamma_bar)`, in decisions; raises `ConfigError` outside [0, 1)."""
    if not 0.0 <= gamma_bar < 1.0:
        raise ConfigError(f"gamma_bar={gamma_bar}: give a number in [0, 1)")
    return 1.0 / (1.0 - gamma_bar)


def predicted_iterations(gamma_bar: float, reward_bound: float, eps: float) -> int:
    """Return the theorem's number of value iterations from V = 0 to `max |V_N - V*| <= eps`, rounded up; at least 0.

    Args:
        gamma_bar: `sup E[gamma^tau | s, z]`, in [0, 1).
        reward_bound: R_max, the largest `|R(s, z)|` of a decision, not negative.
        eps: accuracy in units of return, positive.

    Raises:
        ConfigError: a number outside its range.
    """
    horizon = effective_horizon(gamma_bar)
    if not (reward_bound >= 0.0 and eps > 0.0):
        raise ConfigError(f"reward_bound={reward_bound} must not be negative, and eps={eps} must be positive")
    largest_value = reward_bound * horizon
    return 0 if largest_value <= eps else math.ceil(horizon * math.log(largest_value / eps))


def exact_horizon(mdp: OptionMDP, actions: Actions = "both", *, eps: float = 1e-3) -> ExactHorizon:
    """Compute the horizon of an MDP over a set of its actions, with predicted and observed iterations to `eps`.

    Raises:
        ConfigError, UnknownNameError: as `value_iteration` and `OptionMDP.action_indices`.
    """
    model = mdp.restrict(actions)
    return ExactHorizon(
        gamma_bar=model.gamma_bar,
        reward_bound=model.reward_bound,
        longest_duration=float(model.duration_ZS.max(where=model.legal_ZS, initial=0.0)),
        eps=eps,
        predicted_iterations=predicted_iterations(model.gamma_bar, model.reward_bound, eps),
        observed_iterations=value_iteration(mdp, actions, eps=eps).iterations,
    )


def observed_horizon(
    durations: Sequence[npt.ArrayLike],
    gamma: float,
    *,
    groups: Sequence[npt.ArrayLike] | None = None,
    least_count: int = 30,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> ObservedHorizon:
    """Estimate decisions per episode, durations and gamma_bar, with bootstrap intervals over episodes.

    Args:
        durations: for each episode, the duration of each of its decisions in primitive steps, at least 1.
        gamma: discount per primitive step, in (0, 1).
        groups: for each episode, the group of each decision (its latent, for example), a number from 0. Then gamma_bar
            is the largest mean of gamma^tau among groups of at least `least_count` decisions, which is closer to the
            sup over states and actions than the mean over all decisions.
        least_count: smaller groups are left out; if all are smaller, only the largest is used.
        confidence: of the percentile intervals.
        resamples: how often episodes are resampled, with replacement.
        seed: of the resampling.

    Raises:
        ConfigError: gamma or confidence outside (0, 1).
        DataError: no decisions, a duration below 1, or groups that do not fit.
    """
    if not (0.0 < gamma < 1.0 and 0.0 < confidence < 1.0):
        raise ConfigError(f"gamma={gamma} and confidence={confidence} must lie in (0, 1)")
    episodes = [np.atleast_1d(np.asarray(episode, dtype=np.float64)) for episode in durations]
    num_episodes = len(episodes)
    lengths = np.array([len(episode) for episode in episodes], dtype=np.float64)
    if not lengths.sum():
        raise DataError("durations holds no decision: give at least one episode with one")
    duration = np.concatenate(episodes)
    if not (duration >= 1.0).all():
        raise DataError(f"a decision lasts at least 1 step, but one has {duration.min()}")
    episode_of = np.repeat(np.arange(num_episodes), lengths.astype(np.int64))
    total_duration = np.bincount(episode_of, duration, minlength=num_episodes)
    group = np.zeros(len(duration), dtype=np.int64) if groups is None else _grouped(groups, lengths)
    kept_groups = _kept_groups(group, least_count if groups is not None else 1)
    column_of_group = np.full(int(group.max()) + 1, -1)
    column_of_group[kept_groups] = np.arange(len(kept_groups))
    column = column_of_group[group]
    cells = episode_of[column >= 0], column[column >= 0]
    counts, powers = np.zeros((2, num_episodes, len(kept_groups)))
    np.add.at(counts, cells, 1.0)
    np.add.at(powers, cells, gamma ** duration[column >= 0])

    def figures(weights: FloatArray) -> tuple[float, float, float]:
        decisions = float(weights @ lengths)
        with np.errstate(invalid="ignore"):
            means = (weights @ powers) / (weights @ counts)
        # A resample without any decision of a group gives no mean of that group.
        largest = float(np.nanmax(means)) if np.isfinite(means).any() else math.nan
        return decisions / float(weights.sum()), float(weights @ total_duration) / max(decisions, 1.0), largest

    rng = np.random.default_rng(seed)
    drawn = [
        figures(np.bincount(rng.integers(num_episodes, size=num_episodes), minlength=num_episodes).astype(np.float64))
        for _ in range(resamples)
    ]
    low = high = np.full(3, np.nan)
    if num_episodes > 1:
        tail = 50.0 * (1.0 - confidence)
        low, high = np.nanpercentile(np.array(drawn), [tail, 100.0 - tail], axis=0)
    estimates = figures(np.ones(num_episodes))
    decisions, mean, largest = (Interval(*map(float, ends)) for ends in zip(estimates, low, high, strict=True))
    return ObservedHorizon(decisions, mean, largest, "mean" if groups is None else "largest group mean", num_episodes)


def _grouped(groups: Sequence[npt.ArrayLike], lengths: FloatArray) -> IntArray:
    """Return the group of every decision; raises `DataError` unless groups fit the episodes."""
    rows = [np.atleast_1d(np.asarray(row)) for row in groups]
    if [len(row) for row in rows] != lengths.astype(np.int64).tolist():
        raise DataError("groups must hold one number for each decision of each episode")
    group = np.concatenate(rows)
    if not np.issubdtype(group.dtype, np.integer) or group.min() < 0:
        raise DataError("groups must be integers that are not negative: the index of a latent, for example")
    return group.astype(np.int64)


def _kept_groups(group: IntArray, least_count: int) -> IntArray:
    counts = np.bincount(group)
    (kept,) = np.nonzero(counts >= max(least_count, 1))
    return kept if len(kept) else np.array([int(counts.argmax())])
