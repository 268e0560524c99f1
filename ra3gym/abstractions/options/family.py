"""Random families of `OptionMDP` with planted options.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypedDict

import numpy as np

from ra3gym.abstractions.options.mdp import FloatArray, OptionMDP
from ra3gym.abstractions.options.solvers import optimal_policy
from ra3gym.errors import ConfigError


class FamilyOptions(TypedDict, total=False):
    """The keywords of `random_option_mdp`, all but the seed."""

    num_states: int
    num_actions: int
    num_options: int
    num_good: int
    mean_duration: float
    gamma: float
    branching: int
    reward_density: float
    num_terminals: int
    mistakes: float


def random_option_mdp(
    seed: int | np.random.Generator = 0,
    *,
    num_states: int = 24,
    num_actions: int = 4,
    num_options: int = 8,
    num_good: int = 3,
    mean_duration: float = 4.0,
    gamma: float = 0.95,
    branching: int = 3,
    reward_density: float = 0.2,
    num_terminals: int = 1,
    mistakes: float = 0.0,
) -> OptionMDP:
    """A random MDP with planted options.

    Each state and action leads to `branching` random states with Dirichlet(1) probabilities. A share of these pairs
    pays a reward uniform in (0, 1), the others nothing. Good options follow an optimal policy; each begins in its own
    part of the states, and together they cover all states, so that without one of them a part has no good option. The
    other options follow random policies and begin anywhere. Every option stops with probability `1 / mean_duration` a
    step.

    Without mistakes, options alone lose nothing: `V*` over options equals `V*` over primitives.

    Args:
        seed: of the instance; equal seeds and arguments give equal instances.
        num_states: S, terminal states included.
        num_actions: A, primitive actions.
        num_options: O, good options included.
        num_good: good options, at most O.
        mean_duration: of every option in steps, at least 1; 1 makes options as short as primitives.
        gamma: discount per primitive step.
        branching: successors of a state and action.
        reward_density: share of pairs that pay, in (0, 1].
        num_terminals: how many states end an episode, the last ones; may be 0.
        mistakes: share of states in which good options take a random action instead, in [0, 1].

    Raises:
        ConfigError: a number outside its range.
    """
    _check_family(num_states, num_actions, num_options, num_good, mean_duration, branching, reward_density)
    live = num_states - num_terminals
    if num_terminals < 0 or live < max(num_good, 1):
        raise ConfigError(f"num_terminals={num_terminals} leaves {live} states for num_good={num_good} good options")
    if not 0.0 <= mistakes <= 1.0:
        raise ConfigError(f"mistakes={mistakes}: give a share of the states from 0 to 1")
    rng = np.random.default_rng(seed)
    bare = _bare_mdp(rng, num_states, num_actions, gamma, branching, reward_density, num_terminals)
    best_S = np.maximum(optimal_policy(bare, "primitives"), 0)
    chosen_OS = rng.integers(num_actions, size=(num_options, num_states))
    mistaken = rng.random((num_good, num_states)) < mistakes
    chosen_OS[:num_good] = np.where(mistaken, chosen_OS[:num_good], best_S)
    initiation_OS = np.ones((num_options, num_states), dtype=np.bool_)
    if num_good:
        # The first states of a random order go to different parts, so that no part is empty.
        part_S = np.full(num_states, -1)
        part_S[rng.permutation(live)] = np.append(np.arange(num_good), rng.integers(num_good, size=live - num_good))
        initiation_OS[:num_good] = part_S == np.arange(num_good)[:, None]
    return replace(
        bare,
        initiation_OS=initiation_OS,
        policy_OSA=np.eye(num_actions)[chosen_OS],
        termination_OS=np.full((num_options, num_states), 1.0 / mean_duration),
        good_options=tuple(range(num_good)),
    )


def random_task_family(
    seed: int | np.random.Generator = 0,
    *,
    num_tasks: int = 3,
    num_states: int = 16,
    num_actions: int = 4,
    num_options: int = 10,
    mean_duration: float = 4.0,
    gamma: float = 0.95,
    branching: int = 3,
    reward_density: float = 0.1,
) -> tuple[OptionMDP, ...]:
    """Tasks that share dynamics and options and differ in their rewards; option t follows task t's optimal policy.

    All options begin anywhere; those after the first `num_tasks` follow random policies. So a set of actions is good
    for the family if it contains the option of (nearly) each task: the setting of the pruning theorem, whose samples
    are tasks. No state is terminal. Arguments and errors are those of `random_option_mdp`.
    """
    _check_family(num_states, num_actions, num_options, num_tasks, mean_duration, branching, reward_density)
    rng = np.random.default_rng(seed)
    first = _bare_mdp(rng, num_states, num_actions, gamma, branching, reward_density, 0)
    rewards = (_random_rewards(rng, num_states, num_actions, reward_density) for _ in range(num_tasks - 1))
    bare = [first, *(replace(first, reward_SA=reward_SA) for reward_SA in rewards)]
    chosen_OS = rng.integers(num_actions, size=(num_options, num_states))
    chosen_OS[:num_tasks] = [optimal_policy(task, "primitives") for task in bare]
    options: dict[str, Any] = {
        "initiation_OS": np.ones((num_options, num_states), dtype=np.bool_),
        "policy_OSA": np.eye(num_actions)[chosen_OS],
        "termination_OS": np.full((num_options, num_states), 1.0 / mean_duration),
    }
    return tuple(replace(task, **options, good_options=tuple(range(num_tasks))) for task in bare)


def _check_family(
    num_states: int,
    num_actions: int,
    num_options: int,
    num_good: int,
    mean_duration: float,
    branching: int,
    reward_density: float,
) -> None:
    if num_states < 1 or num_actions < 1 or num_options < 0:
        raise ConfigError(
            f"{num_states} states, {num_actions} actions, {num_options} options: give at least 1, 1 and 0"
        )
    if not 0 <= num_good <= num_options:
        raise ConfigError(f"{num_good} good options among num_options={num_options}: give 0 to all of them")
    if not (np.isfinite(mean_duration) and mean_duration >= 1.0):
        raise ConfigError(f"mean_duration={mean_duration}: an option takes at least 1 step")
    if not 1 <= branching <= num_states:
        raise ConfigError(f"branching={branching}: give 1 to num_states={num_states} successors")
    if not 0.0 < reward_density <= 1.0:
        raise ConfigError(f"reward_density={reward_density}: give a share in (0, 1]")


def _bare_mdp(
    rng: np.random.Generator,
    num_states: int,
    num_actions: int,
    gamma: float,
    branching: int,
    reward_density: float,
    num_terminals: int,
) -> OptionMDP:
    """A random MDP without options."""
    terminal_S = np.arange(num_states) >= num_states - num_terminals
    transition_SAS = np.zeros((num_states, num_actions, num_states))
    order_SAS = rng.random((num_states, num_actions, num_states)).argsort(axis=2)
    shares = rng.dirichlet(np.ones(branching), size=(num_states, num_actions))
    np.put_along_axis(transition_SAS, order_SAS[:, :, :branching], shares, axis=2)
    transition_SAS[terminal_S] = np.eye(num_states)[terminal_S][:, None, :]
    reward_SA = _random_rewards(rng, num_states, num_actions, reward_density)
    reward_SA[terminal_S] = 0.0
    return OptionMDP(
        transition_SAS=transition_SAS,
        reward_SA=reward_SA,
        initiation_OS=np.zeros((0, num_states), dtype=np.bool_),
        policy_OSA=np.zeros((0, num_states, num_actions)),
        termination_OS=np.zeros((0, num_states)),
        gamma=gamma,
        terminal_S=terminal_S,
        start_S=~terminal_S / (num_states - num_terminals),
    )


def _random_rewards(rng: np.random.Generator, num_states: int, num_actions: int, density: float) -> FloatArray:
    reward_SA = rng.random((num_states, num_actions)) * (rng.random((num_states, num_actions)) < density)
    reward_SA[0, 0] = max(reward_SA[0, 0], 0.5)  # so that every instance has a reward
    return np.asarray(reward_SA, dtype=np.float64)
