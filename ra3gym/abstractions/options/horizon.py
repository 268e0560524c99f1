"""How long decisions last, and what that is worth: gamma_bar, the effective horizon, iterations of value iteration.

The convergence theorem of RA3 (arXiv 2509.25810) says that value iteration over actions of random duration tau needs

    N >= 1 / (1 - gamma_bar) * log(R_max / (eps (1 - gamma_bar))),     gamma_bar = sup E[gamma^tau | s, z],

iterations to come within eps of V*. As we use it, and as it can be proved in two lines: from V = 0 the error after N
sweeps is at most `gamma_bar^N max|V*|`, and `max|V*| <= R_max / (1 - gamma_bar)` where R_max bounds the expected
discounted reward `|R(s, z)|` of one **decision**. (With the largest reward of a primitive *step* instead, the bound is
false: an option collects many.) `log(1 / gamma_bar) >= 1 - gamma_bar` gives the rest. Durations count in primitive
steps: lines or tokens of a program, steps of an MDP.
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
    """What observed durations say; see `observed_horizon`."""

    decisions_per_episode: Interval
    mean_duration: Interval
    gamma_bar: Interval
    gamma_bar_is: Literal["mean", "largest group mean"]
    """"mean": the average of gamma^tau over decisions, which is at most the sup. "largest group mean": that of the
    group with the largest one, which noise pushes up where groups are small."""
    episodes: int

    @property
    def effective_horizon(self) -> Interval:
        """`1 / (1 - gamma_bar)` in decisions, and at the ends of its interval."""
        return Interval(*(1.0 / (1.0 - x) for x in (self.gamma_bar.value, self.gamma_bar.low, self.gamma_bar.high)))


@dataclass(frozen=True)
class ExactHorizon:
    """What a known MDP says of some of its actions: gamma_bar, the effective horizon in decisions, and how many sweeps
    value iteration is predicted to need, and needs."""

    gamma_bar: float
    reward_bound: float
    """R_max, of one decision."""
    longest_duration: float
    """The largest expected duration of a legal action, in primitive steps."""
    eps: float
    predicted_iterations: int
    observed_iterations: int

    @property
    def effective_horizon(self) -> float:
        return effective_horizon(self.gamma_bar)


def effective_horizon(gamma_bar: float) -> float:
    """`1 / (1 - gamma_bar)`, in decisions; `ConfigError` outside [0, 1)."""
    if not 0.0 <= gamma_bar < 1.0:
        raise ConfigError(f"gamma_bar={gamma_bar}: give a number in [0, 1)")
    return 1.0 / (1.0 - gamma_bar)


def predicted_iterations(gamma_bar: float, reward_bound: float, eps: float) -> int:
    """The theorem's number of value iterations from V = 0 to `max |V_N - V*| <= eps`, rounded up; at least 0.

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
    """The horizon of an MDP over some of its actions, with predicted and observed iterations to accuracy `eps`.

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
    """Decisions per episode, durations and gamma_bar from what episodes showed, with bootstrap intervals over episodes.

    Args:
        durations: of each episode, the duration of each of its decisions in primitive steps, at least 1.
        gamma: discount per primitive step, in (0, 1).
        groups: for each decision a number of what it belongs to (its latent, say), not negative. Then gamma_bar is the
            largest mean of gamma^tau among groups of at least `least_count` decisions, which comes nearer to the sup
            over states and actions than the mean over all.
        least_count: smaller groups are left out; if all are smaller, the largest stands for them.
        confidence: of the percentile intervals.
        resamples: of whole episodes, with replacement.
        seed: of the resampling.

    Raises:
        ConfigError: gamma or confidence outside (0, 1).
        DataError: no decisions, a duration below 1, or groups that do not fit.
    """
    if not (0.0 < gamma < 1.0 and 0.0 < confidence < 1.0):
        raise ConfigError(f"gamma={gamma} and confidence={confidence} must lie in (0, 1)")
    episodes = [np.atleast_1d(np.asarray(one, dtype=np.float64)) for one in durations]
    length_E = np.array([len(one) for one in episodes], dtype=np.float64)
    if not length_E.sum():
        raise DataError("durations holds no decision: give at least one episode with one")
    duration_D = np.concatenate(episodes)
    if not (duration_D >= 1.0).all():
        raise DataError(f"a decision lasts at least 1 step, but one has {duration_D.min()}")
    episode_D = np.repeat(np.arange(len(episodes)), length_E.astype(np.int64))
    total_E = np.bincount(episode_D, duration_D, minlength=len(episodes))
    group_D = np.zeros(len(duration_D), dtype=np.int64) if groups is None else _grouped(groups, length_E)
    kept_G = _kept_groups(group_D, least_count if groups is not None else 1)
    column_G = np.full(int(group_D.max()) + 1, -1)
    column_G[kept_G] = np.arange(len(kept_G))
    of_D = column_G[group_D]
    count_EG, power_EG = np.zeros((2, len(episodes), len(kept_G)))
    np.add.at(count_EG, (episode_D[of_D >= 0], of_D[of_D >= 0]), 1.0)
    np.add.at(power_EG, (episode_D[of_D >= 0], of_D[of_D >= 0]), gamma ** duration_D[of_D >= 0])

    def figures(weight_E: FloatArray) -> tuple[float, float, float]:
        decisions = float(weight_E @ length_E)
        with np.errstate(invalid="ignore"):
            mean_G = (weight_E @ power_EG) / (weight_E @ count_EG)
        # A resample without any decision of a group says nothing of that group.
        largest = float(np.nanmax(mean_G)) if np.isfinite(mean_G).any() else math.nan
        return decisions / float(weight_E.sum()), float(weight_E @ total_E) / max(decisions, 1.0), largest

    rng = np.random.default_rng(seed)
    E = len(episodes)
    drawn = [figures(np.bincount(rng.integers(E, size=E), minlength=E).astype(np.float64)) for _ in range(resamples)]
    tail = 50.0 * (1.0 - confidence)
    if E > 1:
        low, high = np.nanpercentile(np.array(drawn), [tail, 100.0 - tail], axis=0)
    else:
        low = high = np.full(3, np.nan)
    decisions, mean, largest = (Interval(*map(float, one)) for one in zip(figures(np.ones(E)), low, high, strict=True))
    return ObservedHorizon(decisions, mean, largest, "mean" if groups is None else "largest group mean", E)


def _grouped(groups: Sequence[npt.ArrayLike], length_E: FloatArray) -> IntArray:
    """The groups of all decisions; `DataError` if they are not theirs."""
    rows = [np.atleast_1d(np.asarray(one)) for one in groups]
    if [len(one) for one in rows] != length_E.astype(np.int64).tolist():
        raise DataError("groups must hold one number for each decision of each episode")
    group_D = np.concatenate(rows)
    if not np.issubdtype(group_D.dtype, np.integer) or group_D.min() < 0:
        raise DataError("groups must be integers that are not negative: a latent's index, say")
    return group_D.astype(np.int64)


def _kept_groups(group_D: IntArray, least_count: int) -> IntArray:
    count_G = np.bincount(group_D)
    (kept_G,) = np.nonzero(count_G >= max(least_count, 1))
    return kept_G if len(kept_G) else np.array([int(count_G.argmax())])
