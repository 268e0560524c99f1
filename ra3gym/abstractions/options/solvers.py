"""Exact optima of an `OptionMDP` over any set of its actions, and how many sweeps value iteration needs.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ra3gym.abstractions.options.mdp import ActionModel, Actions, BoolArray, FloatArray, IntArray, OptionMDP
from ra3gym.errors import ConfigError
from ra3gym.kernels import njit

MAX_ITERATIONS = 1_000_000
"""The most sweeps of value iteration; at gamma = 0.999 it needs about 20,000 for six digits."""


def optimal_values(mdp: OptionMDP, actions: Actions = "both") -> FloatArray:
    """Return V* over these actions, `(S,)`, exact to rounding, by policy iteration.

    States where none of them is legal have value 0: the environment stays there without reward.
    """
    return _policy_iteration(*_arrays(mdp.restrict(actions)))[0]


def optimal_policy(mdp: OptionMDP, actions: Actions = "both") -> IntArray:
    """Return an optimal action per state, `(S,)`, as index among all Z; -1 where none of these actions is legal."""
    choice_S = _policy_iteration(*_arrays(mdp.restrict(actions)))[1]
    return np.where(choice_S < 0, -1, mdp.action_indices(actions)[choice_S])


def pruning_error(mdp: OptionMDP, kept: Actions, actions: Actions = "both") -> float:
    """Return `V*_Z(s0) - V*_Z'(s0)`, exact, in units of return, as the mean over `start_S`.

    Z are the `actions`, Z' those `kept`. It is not negative when Z' is a subset of Z.
    """
    lost_S = optimal_values(mdp, actions) - optimal_values(mdp, kept)
    return float(mdp.start_S @ lost_S)


@dataclass(frozen=True)
class ValueIteration:
    """The result of value iteration from V = 0.

    Attributes:
        value_S: the values.
        iterations: the number of sweeps.
        residual: the largest change in the last sweep.
    """

    value_S: FloatArray
    iterations: int
    residual: float


def value_iteration(
    mdp: OptionMDP,
    actions: Actions = "both",
    *,
    eps: float = 1e-3,
    stop: Literal["error", "residual"] = "error",
    target_S: FloatArray | None = None,
) -> ValueIteration:
    """Run value iteration from V = 0 until V is within `eps` of V* in every state.

    Args:
        mdp: the MDP to solve.
        actions: the actions to choose from.
        eps: in units of return, positive.
        stop: "error" stops after N sweeps with `max |V_N - V*| <= eps`, which requires V*. "residual" stops when
            `max |V_N - V_{N-1}| <= eps (1 - gamma_bar) / gamma_bar`, which implies it. The theorem's number
            (`predicted_iterations`) bounds both.
        target_S: V*, if it is already known; only "error" reads it.

    Raises:
        ConfigError: an eps that is not positive, or no convergence within `MAX_ITERATIONS` sweeps.
    """
    if not eps > 0.0:
        raise ConfigError(f"eps={eps}: give a positive accuracy")
    model = mdp.restrict(actions)
    arrays = _arrays(model)
    gamma_bar = model.gamma_bar
    if stop == "error":
        target_S = _policy_iteration(*arrays)[0] if target_S is None else target_S
        value_S, iterations, residual = _iterate(*arrays, target_S, eps, -1.0, MAX_ITERATIONS)
    else:
        threshold = eps * (1.0 - gamma_bar) / gamma_bar if gamma_bar > 0.0 else np.inf
        value_S, iterations, residual = _iterate(*arrays, np.zeros(mdp.num_states), -1.0, threshold, MAX_ITERATIONS)
    if iterations < 0:
        raise ConfigError(f"eps={eps} is not reached within {MAX_ITERATIONS} iterations: raise eps or lower gamma")
    return ValueIteration(value_S, int(iterations), float(residual))


def expert_episodes(
    mdp: OptionMDP, rng: np.random.Generator, num_episodes: int, actions: Actions = "options"
) -> list[IntArray]:
    """Sample episodes of an optimal policy: the actions of each, as indices among all Z.

    Rewards are not discounted. Instead, an episode ends after each decision with probability `1 - E[gamma^tau]`, so
    that the chain of decisions has kernel D: the same values, and exactly the discounted occupancy.
    """
    policy_S = optimal_policy(mdp, actions)
    next_ZSS = mdp.model.next_ZSS
    episodes = []
    for state in rng.choice(mdp.num_states, size=num_episodes, p=mdp.start_S).tolist():
        taken: list[int] = []
        while state < mdp.num_states and policy_S[state] >= 0:
            taken.append(int(policy_S[state]))
            reached_S = np.cumsum(next_ZSS[taken[-1], state])
            state = int(np.searchsorted(reached_S, rng.random(), side="right"))  # num_states: the episode ends
        episodes.append(np.array(taken, dtype=np.int64))
    return episodes


def _arrays(model: ActionModel) -> tuple[FloatArray, FloatArray, BoolArray]:
    return model.reward_ZS, model.next_ZSS, model.legal_ZS


@njit(nogil=True)
def _policy_iteration(reward_ZS: FloatArray, next_ZSS: FloatArray, legal_ZS: BoolArray) -> tuple[FloatArray, IntArray]:
    """Return V* and, per state, an optimal row of the tables; -1 where no action is legal (value 0)."""
    Z, S = reward_ZS.shape
    choice_S = np.full(S, -1, dtype=np.int64)
    for s in range(S):
        for z in range(Z):
            if legal_ZS[z, s] and choice_S[s] < 0:
                choice_S[s] = z
    while True:
        system_SS, known_S = np.eye(S), np.zeros(S)
        for s in range(S):
            if choice_S[s] >= 0:
                system_SS[s] -= next_ZSS[choice_S[s], s]
                known_S[s] = reward_ZS[choice_S[s], s]
        value_S = np.linalg.solve(system_SS, known_S).astype(np.float64)
        # Gains within rounding are no improvement: following them could cycle forever.
        slack = 1e-12 * (1.0 + np.abs(value_S).max())
        improved = False
        for s in range(S):
            best = value_S[s] + slack
            for z in range(Z):
                if legal_ZS[z, s]:
                    q = reward_ZS[z, s] + next_ZSS[z, s] @ value_S
                    if q > best:
                        best, choice_S[s], improved = q, z, True
        if not improved:
            return value_S, choice_S


@njit(nogil=True)
def _iterate(
    reward_ZS: FloatArray,
    next_ZSS: FloatArray,
    legal_ZS: BoolArray,
    target_S: FloatArray,
    max_error: float,
    max_residual: float,
    max_iterations: int,
) -> tuple[FloatArray, int, float]:
    """Sweep until the error to the target or the change of a sweep is small enough; a negative limit is never met.

    Returns values, number of sweeps and last change; the number is -1 if no limit was met in `max_iterations`.
    """
    Z, S = reward_ZS.shape
    value_S, residual = np.zeros(S), np.inf
    for iteration in range(max_iterations + 1):
        if np.abs(value_S - target_S).max() <= max_error or residual <= max_residual:
            return value_S, iteration, residual
        new_S = np.zeros(S)
        for s in range(S):
            best = -np.inf
            for z in range(Z):
                if legal_ZS[z, s]:
                    best = max(best, reward_ZS[z, s] + next_ZSS[z, s] @ value_S)
            if best > -np.inf:
                new_S[s] = best
        residual = np.abs(new_S - value_S).max()
        value_S = new_S
    return value_S, -1, residual
