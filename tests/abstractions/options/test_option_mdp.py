"""Options in finite MDPs: models by hand, optima against other ways to them, and the convergence theorem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra3gym.abstractions.options import (
    OptionMDP,
    exact_horizon,
    expert_episodes,
    optimal_policy,
    optimal_values,
    predicted_iterations,
    pruning_error,
    random_option_mdp,
    random_task_family,
    value_iteration,
)
from ra3gym.errors import ConfigError, DataError, UnknownNameError


def corridor(stop: float = 0.0, gamma: float = 0.5) -> OptionMDP:
    """0 -> 1 -> 2 -> 3 (terminal) under action 0, paying 1, 2 and 4; action 1 stays. The option goes right, from 0."""
    transition_SAS = np.zeros((4, 2, 4))
    for s in range(4):
        transition_SAS[s, 0, min(s + 1, 3)] = transition_SAS[s, 1, s] = 1.0
    return OptionMDP(
        transition_SAS=transition_SAS,
        reward_SA=np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [0.0, 0.0]]),
        initiation_OS=np.array([[True, False, False, False]]),
        policy_OSA=np.array([[[1.0, 0.0]] * 4]),
        termination_OS=np.full((1, 4), stop),
        gamma=gamma,
        terminal_S=np.array([False, False, False, True]),
        start_S=np.array([1.0, 0.0, 0.0, 0.0]),
    )


# The model of an option


def test_the_model_of_a_corridor_is_that_by_hand() -> None:
    model = corridor(stop=0.25).model
    # From 0: 1, then with probability 3/4 on to 2, then with 3/4 on to the end.
    assert model.reward_ZS[2, 0] == pytest.approx(1.0 + 0.5 * 0.75 * 2.0 + 0.25 * 0.75**2 * 4.0)
    np.testing.assert_allclose(model.next_ZSS[2, 0], [0.0, 0.5 * 0.25, 0.25 * 0.75 * 0.25, 0.0])
    assert model.duration_ZS[2, 0] == pytest.approx(0.25 * 1 + 0.75 * 0.25 * 2 + 0.75**2 * 3)
    assert model.legal_ZS.tolist() == [[True, True, True, False], [True, True, True, False], [True] + [False] * 3]
    np.testing.assert_array_equal(model.next_ZSS[2, 1:], 0.0)
    assert model.discount_ZS[0].tolist() == [0.5, 0.5, 0.0, 0.0]  # the end counts as gamma^tau = 0


def test_values_of_a_corridor_are_those_by_hand() -> None:
    mdp = corridor()
    np.testing.assert_allclose(optimal_values(mdp, "primitives"), [3.0, 4.0, 4.0, 0.0])
    # The option alone may begin at 0 only: elsewhere nothing is legal, and the value is 0.
    np.testing.assert_allclose(optimal_values(mdp, "options"), [3.0, 0.0, 0.0, 0.0])
    assert optimal_policy(mdp, "options").tolist() == [2, -1, -1, -1]
    assert pruning_error(mdp, [2]) == 0.0
    assert pruning_error(mdp, [1]) == 3.0
    # V_1 = (1, 2, 4), V_2 = (2, 4, 4), V_3 = (3, 4, 4); with the option one sweep is enough at 0.
    assert value_iteration(mdp, "primitives", eps=1e-9).iterations == 3
    assert value_iteration(mdp, "both", eps=1e-9).iterations == 2
    assert value_iteration(mdp, "options", eps=1e-9).iterations == 1


def test_durations_are_infinite_where_an_option_may_never_stop() -> None:
    mdp = corridor()
    stays = replace(mdp, policy_OSA=np.array([[[0.0, 1.0]] * 4]), initiation_OS=np.ones((1, 4), dtype=np.bool_))
    assert np.isinf(stays.model.duration_ZS[2, :3]).all()
    np.testing.assert_allclose(stays.model.next_ZSS[2], 0.0)
    half = replace(stays, policy_OSA=np.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]]))
    half = replace(half, termination_OS=np.array([[0.0, 0.5, 0.0, 0.0]]))
    # From 0 it stops at 1 or gets stuck at 2, from 1 and 2 it never stops: infinite from all, but for one step.
    assert np.isinf(half.model.duration_ZS[2, :3]).all()
    assert replace(half, termination_OS=np.ones((1, 4))).model.duration_ZS[2].tolist() == [1.0, 1.0, 1.0, 0.0]


@given(seed=st.integers(0, 10_000), mean_duration=st.floats(1.0, 12.0), gamma=st.floats(0.3, 0.99))
@settings(max_examples=25, deadline=None)
def test_models_satisfy_their_own_recursion(seed: int, mean_duration: float, gamma: float) -> None:
    """One step, then stop or go on: `R = r + gamma P (1 - stop) R`, and alike D and the duration."""
    rng = np.random.default_rng(seed)
    mdp = random_option_mdp(seed, num_states=9, mean_duration=mean_duration, gamma=gamma, num_terminals=seed % 3)
    mdp = replace(
        mdp,
        policy_OSA=rng.dirichlet(np.ones(4), size=(8, 9)),
        termination_OS=rng.uniform(0.1, 1.0, size=(8, 9)),
        initiation_OS=np.ones((8, 9), dtype=np.bool_),
    )
    live_S, model = ~mdp.terminal_S, mdp.model
    for o in range(8):
        step_SS = np.einsum("sa,sat->st", mdp.policy_OSA[o], mdp.transition_SAS) * live_S
        on_SS = step_SS * (1.0 - mdp.termination_OS[o])
        z = 4 + o
        reward_S = (mdp.policy_OSA[o] * mdp.reward_SA).sum(axis=1) + gamma * on_SS @ model.reward_ZS[z]
        next_SS = gamma * step_SS * mdp.termination_OS[o] + gamma * on_SS @ model.next_ZSS[z]
        np.testing.assert_allclose(model.reward_ZS[z], np.where(live_S, reward_S, 0.0), atol=1e-12)
        np.testing.assert_allclose(model.next_ZSS[z], np.where(live_S[:, None], next_SS, 0.0), atol=1e-12)
        np.testing.assert_allclose(model.duration_ZS[z], np.where(live_S, 1.0 + on_SS @ model.duration_ZS[z], 0.0))
    discount_ZS = model.discount_ZS[model.legal_ZS]
    assert (discount_ZS <= gamma + 1e-12).all()
    assert mdp.gamma_bar("primitives") <= gamma + 1e-12


@pytest.mark.parametrize("mean_duration", [1.0, 2.0, 8.0])
def test_without_ends_gamma_bar_is_that_of_a_geometric_duration(mean_duration: float) -> None:
    mdp = random_option_mdp(0, mean_duration=mean_duration, num_terminals=0, gamma=0.9)
    stop = 1.0 / mean_duration
    assert mdp.gamma_bar("options") == pytest.approx(0.9 * stop / (1.0 - 0.9 * (1.0 - stop)))
    assert mdp.gamma_bar("both") == mdp.gamma_bar("primitives") == pytest.approx(0.9)
    legal_ZS = mdp.model.legal_ZS[4:]
    np.testing.assert_allclose(mdp.model.duration_ZS[4:][legal_ZS], mean_duration)


# Optima


@given(seed=st.integers(0, 10_000), actions=st.sampled_from(["primitives", "options", "both", [1, 4, 9]]))
@settings(max_examples=40, deadline=None)
def test_policy_iteration_value_iteration_and_bellmans_equation_agree(seed: int, actions: Any) -> None:
    mdp = random_option_mdp(seed, num_states=12, num_terminals=seed % 2, mistakes=0.3)
    value_S = optimal_values(mdp, actions)
    swept = value_iteration(mdp, actions, eps=1e-8, stop="residual")
    np.testing.assert_allclose(swept.value_S, value_S, atol=1e-8)
    model = mdp.restrict(actions)
    q_ZS = np.where(model.legal_ZS, model.reward_ZS + model.next_ZSS @ value_S, -np.inf)
    best_S = np.where(model.legal_ZS.any(axis=0), q_ZS.max(axis=0), 0.0)
    np.testing.assert_allclose(best_S, value_S, atol=1e-10)
    policy_S = optimal_policy(mdp, actions)
    indices = mdp.action_indices(actions)
    for s in np.flatnonzero(model.legal_ZS.any(axis=0)):
        assert q_ZS[np.flatnonzero(indices == policy_S[s])[0], s] == pytest.approx(value_S[s])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_more_actions_are_never_worse_and_planted_options_lose_nothing(seed: int) -> None:
    mdp = random_option_mdp(seed, num_states=12)
    primitives, options, both = (optimal_values(mdp, one) for one in ("primitives", "options", "both"))
    np.testing.assert_allclose(options, primitives, atol=1e-10)
    np.testing.assert_allclose(both, primitives, atol=1e-10)
    good = [mdp.num_primitives + o for o in mdp.good_options]
    assert pruning_error(mdp, good) == pytest.approx(0.0, abs=1e-10)
    kept, error = list(range(12)), 0.0
    for action in np.random.default_rng(seed).permutation(12)[:11].tolist():
        kept.remove(action)
        next_error = pruning_error(mdp, kept)
        assert next_error >= error - 1e-10
        error = next_error


def test_mistakes_make_options_worse_than_primitives() -> None:
    errors = [pruning_error(random_option_mdp(0, mistakes=share), "options") for share in (0.0, 1.0)]
    assert errors[0] == pytest.approx(0.0, abs=1e-10)
    assert errors[1] > 0.1


def test_good_options_cover_all_states_between_them() -> None:
    for seed in range(20):
        mdp = random_option_mdp(seed, num_good=4)
        begins_S = mdp.initiation_OS[:4].sum(axis=0)
        np.testing.assert_array_equal(begins_S, ~mdp.terminal_S)
        assert mdp.initiation_OS[:4].any(axis=1).all()


def test_equal_seeds_give_equal_instances() -> None:
    first, again, other = random_option_mdp(3), random_option_mdp(3), random_option_mdp(4)
    for name in ("transition_SAS", "reward_SA", "initiation_OS", "policy_OSA"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.transition_SAS != other.transition_SAS).any()


def test_each_task_of_a_family_has_its_option() -> None:
    tasks = random_task_family(0, num_tasks=3)
    for t, task in enumerate(tasks):
        np.testing.assert_array_equal(task.transition_SAS, tasks[0].transition_SAS)
        assert pruning_error(task, [4 + t], "options") == pytest.approx(0.0, abs=1e-10)
        others = [4 + o for o in range(10) if o != t]
        assert pruning_error(task, others, "options") > 0.0


def test_expert_episodes_end_as_discounting_would_have_it() -> None:
    """Their mean number of decisions is the expected sum of the products of D's row sums, within five errors."""
    mdp = random_option_mdp(2, mean_duration=3.0)
    episodes = expert_episodes(mdp, np.random.default_rng(0), 4000, "options")
    policy_S = optimal_policy(mdp, "options")
    chain_SS = np.array([mdp.model.next_ZSS[max(z, 0), s] if z >= 0 else np.zeros(24) for s, z in enumerate(policy_S)])
    expected = mdp.start_S @ np.linalg.solve(np.eye(24) - chain_SS, ~mdp.terminal_S)
    lengths = np.array([len(one) for one in episodes])
    assert abs(lengths.mean() - expected) < 5.0 * lengths.std() / np.sqrt(4000)
    assert set(np.concatenate(episodes)) <= set(policy_S)


# The convergence theorem


def test_value_iteration_with_options_stays_within_the_bound_on_600_instances() -> None:
    """The theorem: with either way to stop, and for options, primitives and both.

    Beside it, iterations against primitives at the same gamma. Options can need more only where they are no longer than
    primitives: with every duration 1 they are primitives, chosen from fewer at each state, so that their N-step values
    are no larger on the way to the same V*.
    """
    ratios: dict[float, list[float]] = {}
    more = []
    for seed in range(600):
        mean_duration = (1.0, 1.25, 2.0, 4.0, 8.0)[seed % 5]
        gamma, eps = (0.8, 0.9, 0.95, 0.98)[seed % 4], (1e-1, 1e-3)[seed % 2]
        mdp = random_option_mdp(
            seed, num_states=16, mean_duration=mean_duration, gamma=gamma, num_terminals=seed % 3, mistakes=0.0
        )
        options = exact_horizon(mdp, "options", eps=eps)
        primitives = exact_horizon(mdp, "primitives", eps=eps)
        for actions, horizon in (("options", options), ("primitives", primitives)):
            assert horizon.observed_iterations <= horizon.predicted_iterations
            watched = value_iteration(mdp, actions, eps=eps, stop="residual")
            assert horizon.observed_iterations <= watched.iterations <= horizon.predicted_iterations
        ratios.setdefault(mean_duration, []).append(options.observed_iterations / primitives.observed_iterations)
        if options.observed_iterations > primitives.observed_iterations:
            more.append(mean_duration)
    assert set(more) <= {1.0}
    median = {duration: float(np.median(found)) for duration, found in ratios.items()}
    assert median[1.0] == pytest.approx(1.0, abs=0.05)
    assert median[8.0] < 0.3 < median[2.0] < 0.7 < median[1.25] < 0.95


@given(seed=st.integers(0, 10_000), actions=st.sampled_from(["primitives", "options", "both", [0, 6]]))
@settings(max_examples=40, deadline=None)
def test_the_bound_holds_for_options_that_lose_and_for_any_subset(seed: int, actions: Any) -> None:
    mdp = random_option_mdp(seed, num_states=10, mistakes=0.5, mean_duration=1.0 + seed % 5, gamma=0.9)
    horizon = exact_horizon(mdp, actions, eps=1e-4)
    assert horizon.observed_iterations <= horizon.predicted_iterations


def test_with_the_reward_of_a_step_for_that_of_a_decision_the_number_would_be_too_small() -> None:
    """Why R_max is that of a decision: one step pays 1 at most, but an option collects 1 / (1 - gamma)."""
    mdp = OptionMDP(
        transition_SAS=np.ones((1, 1, 1)),
        reward_SA=np.ones((1, 1)),
        initiation_OS=np.ones((1, 1), dtype=np.bool_),
        policy_OSA=np.ones((1, 1, 1)),
        termination_OS=np.full((1, 1), 0.01),
        gamma=0.99,
        terminal_S=np.zeros(1, dtype=np.bool_),
        start_S=np.ones(1),
    )
    horizon = exact_horizon(mdp, "options", eps=5.0)
    assert horizon.reward_bound > 40.0
    assert predicted_iterations(horizon.gamma_bar, 1.0, 5.0) == 0
    assert 0 < horizon.observed_iterations <= horizon.predicted_iterations


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward_SA": np.zeros((4, 3))}, r"transition_SAS has shape \(4, 2, 4\), expected \(4, 3, 4\)"),
        ({"transition_SAS": np.zeros((4, 2, 4))}, "transition_SAS: rows must be distributions"),
        ({"policy_OSA": np.full((1, 4, 2), 0.4)}, "policy_OSA: rows must be distributions"),
        ({"termination_OS": np.full((1, 4), 1.5)}, "termination_OS: probabilities"),
        ({"reward_SA": np.full((4, 2), np.nan)}, "rewards must be finite"),
        ({"start_S": np.array([0.0, 0.0, 0.0, 1.0])}, "cannot begin in a terminal state"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(corridor(), **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.0}, "gamma=1.0"),
        ({"mean_duration": 0.9}, "mean_duration=0.9"),
        ({"num_good": 9}, "9 good options among num_options=8"),
        ({"num_states": 3, "num_terminals": 1}, "leaves 2 states for num_good=3"),
        ({"branching": 0}, "branching=0"),
        ({"reward_density": 0.0}, "reward_density=0.0"),
        ({"mistakes": 2.0}, "mistakes=2.0"),
        ({"num_actions": 0}, "0 actions"),
    ],
)
def test_families_outside_their_ranges_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        random_option_mdp(0, **options)


def test_wrong_sets_and_accuracies_are_refused() -> None:
    mdp = corridor()
    with pytest.raises(UnknownNameError, match=r"action set 'primitive'.*Did you mean 'primitives'"):
        optimal_values(mdp, "primitive")
    for actions in ([], [0, 0], [3], [-1]):
        with pytest.raises(ConfigError, match="actions="):
            optimal_values(mdp, actions)
    with pytest.raises(ConfigError, match=r"eps=0\.0"):
        value_iteration(mdp, eps=0.0)
