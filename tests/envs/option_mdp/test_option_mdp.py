"""`ra3gym/OptionMDP-v0`: Gymnasium's contract, returns that are the exact values, and arrays equal to single steps."""

from __future__ import annotations

import json
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from ra3gym.abstractions.options import OptionMDP, optimal_policy, random_option_mdp
from ra3gym.envs.option_mdp.env import OptionMDPEnv
from ra3gym.envs.option_mdp.instance import cumulative
from ra3gym.envs.option_mdp.kernels import DRAWN
from ra3gym.envs.option_mdp.vector_env import OptionMDPVectorEnv
from ra3gym.errors import ConfigError, UnknownNameError

ID = "ra3gym/OptionMDP-v0"
VARIANTS: list[dict[str, Any]] = [
    {},
    {"actions": "primitives"},
    {"actions": "options", "observation": "dict"},
    {"actions": [0, 5, 9], "observation": "index"},
    {"instance_seed": 3, "num_states": 7, "mean_duration": 2.0, "horizon": 9, "num_terminals": 0, "gamma": 0.8},
]
AUTORESET = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


def corridor(stop: float = 0.0) -> OptionMDP:
    """0 -> 1 -> 2 -> 3 (terminal) under action 0; action 1 stays. Steps right pay 1, 2 and 4.

    Option 0 goes right, may begin at 0 only, and stops on entering a state with probability `stop`.
    """
    transition_SAS = np.zeros((4, 2, 4))
    for s in range(4):
        transition_SAS[s, 0, min(s + 1, 3)] = transition_SAS[s, 1, s] = 1.0
    return OptionMDP(
        transition_SAS=transition_SAS,
        reward_SA=np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [0.0, 0.0]]),
        initiation_OS=np.array([[True, False, False, False]]),
        policy_OSA=np.array([[[1.0, 0.0]] * 4]),
        termination_OS=np.full((1, 4), stop),
        gamma=0.5,
        terminal_S=np.array([False, False, False, True]),
        start_S=np.array([1.0, 0.0, 0.0, 0.0]),
    )


# Gymnasium's contract


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gymnasium_and_stable_baselines3_find_nothing_to_say(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, **options)
        check_env(env.unwrapped)
        check_env_sb3(env.unwrapped)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_spec_survives_json_and_pickle(options: dict[str, Any]) -> None:
    env = gym.make(ID, **options)
    assert env.spec is not None
    json.dumps(env.spec.kwargs)
    for spec in (gym.envs.registration.EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gym.make(spec)
        assert spec.kwargs == env.spec.kwargs
        assert again.observation_space == env.observation_space
        assert data_equivalence(again.reset(seed=3), env.reset(seed=3), exact=True)
        for action in (1, 0, 2):
            assert data_equivalence(again.step(np.int64(action)), env.step(np.int64(action)), exact=True)


def test_a_pickled_environment_goes_on_alike() -> None:
    env = OptionMDPEnv()
    env.reset(seed=0)
    again = pickle.loads(pickle.dumps(env))
    for action in range(12):
        assert data_equivalence(again.step(np.int64(action)), env.step(np.int64(action)), exact=True)


def test_stable_baselines3_learns_from_it_with_masks() -> None:
    env = OptionMDPEnv(actions="options")
    model = MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=32, seed=0).learn(128)
    obs, info = env.reset(seed=0)
    action, _ = model.predict(obs, action_masks=env.action_masks())
    assert info["action_mask"][action] == 1


# What a step is


def test_an_options_reward_is_its_discounted_sum() -> None:
    env = OptionMDPEnv(corridor())
    _, info = env.reset(seed=0)
    assert info["state"] == 0
    assert info["action_mask"].tolist() == [1, 1, 1]
    _, reward, terminated, truncated, info = env.step(np.int64(2))
    assert reward == 1.0 + 0.5 * 2.0 + 0.25 * 4.0 == env.optimal_value()
    assert (terminated, truncated) == (True, False)
    assert info["state"] == 3
    assert info["duration"] == {"steps": 3}
    assert info["action_mask"].tolist() == [1, 1, 1]
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))


def test_an_option_that_stops_at_once_is_a_primitive_step() -> None:
    env = OptionMDPEnv(corridor(stop=1.0), render_mode="ansi")
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(np.int64(2))
    assert (reward, terminated, info["state"], info["duration"]) == (1.0, False, 1, {"steps": 1})
    assert info["action_mask"].tolist() == [1, 1, 0]
    assert env.render() == "# state 1, 1 of 100 steps; option 0 took 1 steps for 1.000\n"


def test_an_illegal_action_lets_one_step_pass() -> None:
    env = OptionMDPEnv(corridor(stop=1.0), horizon=3)
    env.reset(options={"state": 1})
    for action in (2, -1):  # an option that may not begin here; no action at all
        _, reward, terminated, truncated, info = env.step(np.int64(action))
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert (info["state"], info["duration"], info["illegal_action"]) == (1, {"steps": 1}, True)
    _, _, terminated, truncated, info = env.step(np.int64(0))
    assert (terminated, truncated, info["illegal_action"]) == (False, True, False)


def test_the_horizon_cuts_an_option_off() -> None:
    env = OptionMDPEnv(corridor(), horizon=2)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(np.int64(2))
    assert (reward, terminated, truncated, info["duration"]) == (2.0, False, True, {"steps": 2})


def test_the_end_at_the_horizon_is_an_end_and_no_truncation() -> None:
    env = OptionMDPEnv(corridor(), horizon=3)
    env.reset(seed=0)
    assert env.step(np.int64(2))[2:4] == (True, False)


@pytest.mark.parametrize("actions", ["primitives", "options", "both"])
def test_discounted_returns_of_the_optimal_policy_average_to_the_exact_value(actions: Any) -> None:
    """1,000 episodes of a thousand environments: within four standard errors of V*."""
    mdp = random_option_mdp(1, gamma=0.9, mean_duration=3.0)
    E = 1000
    envs = OptionMDPVectorEnv(mdp, E, actions=actions, horizon=200, autoreset_mode="Disabled")
    policy_S = np.searchsorted(mdp.action_indices(actions), np.maximum(optimal_policy(mdp, actions), 0))
    _, info = envs.reset(seed=0)
    returned_E, discount_E, running_E = np.zeros(E), np.ones(E), np.ones(E, dtype=np.bool_)
    while running_E.any():
        _, reward_E, terminated_E, truncated_E, info = envs.step(policy_S[info["state"]])
        returned_E += np.where(running_E, discount_E * reward_E, 0.0)
        discount_E *= mdp.gamma ** info["duration"]["steps"]
        ended_E = terminated_E | truncated_E
        running_E &= ~ended_E
        if ended_E.any():
            _, again = envs.reset(options={"reset_mask": ended_E})
            info["state"][ended_E] = again["state"][ended_E]
    error = returned_E.std() / np.sqrt(E)
    assert abs(returned_E.mean() - envs.optimal_value()) < 4.0 * error < 0.2 * envs.optimal_value()


@given(st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0]), min_size=1, max_size=8).filter(any), st.floats(0, 1 - 1e-16))
def test_what_is_impossible_is_never_drawn(weights: list[float], uniform: float) -> None:
    probabilities = np.array(weights) / sum(weights)
    sums = cumulative(probabilities)
    assert sums[-1] == 1.0
    assert probabilities[np.searchsorted(sums, uniform, side="right")] > 0.0


# The vector form


def assert_alike(first: VectorEnv, second: VectorEnv, steps: int, seed: int = 3) -> None:
    """Both return the same to the last bit, from the reset on."""
    rng = np.random.default_rng(seed)
    returned = [env.reset(seed=seed) for env in (first, second)]
    assert data_equivalence(*returned, exact=True)
    for _ in range(steps):
        # Now and then an action that is out of range, on either side.
        actions = rng.integers(first.single_action_space.n, size=first.num_envs)
        actions[rng.random(first.num_envs) < 0.05] = rng.choice([-1, int(first.single_action_space.n)])
        returned = [env.step(actions) for env in (first, second)]
        assert data_equivalence(*returned, exact=True)


@pytest.mark.parametrize("mode", AUTORESET)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_it_returns_what_gymnasiums_own_vector_returns(mode: AutoresetMode, options: dict[str, Any]) -> None:
    theirs = SyncVectorEnv([lambda: OptionMDPEnv(**options)] * 5, autoreset_mode=mode)
    ours = OptionMDPVectorEnv(num_envs=5, autoreset_mode=mode, **options)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.reset(seed=0)[0] in ours.observation_space
    # Long enough that the blocks of uniform numbers run out, also in the midst of options.
    assert_alike(theirs, ours, steps=400)


@given(seed=st.integers(0, 10_000), num_envs=st.integers(1, 4), mode=st.sampled_from(AUTORESET))
@settings(max_examples=25, deadline=None)
def test_it_does_so_for_any_instance(seed: int, num_envs: int, mode: AutoresetMode) -> None:
    rng = np.random.default_rng(seed)
    mdp = random_option_mdp(seed, num_states=9, num_terminals=seed % 3, mean_duration=1.0 + seed % 7)
    soft = OptionMDP(
        **{**vars(mdp), "policy_OSA": rng.dirichlet(np.ones(4), size=(8, 9)), "termination_OS": rng.random((8, 9))}
    )
    theirs = SyncVectorEnv([lambda: OptionMDPEnv(soft, horizon=20)] * num_envs, autoreset_mode=mode)
    assert_alike(theirs, OptionMDPVectorEnv(soft, num_envs, horizon=20, autoreset_mode=mode), steps=25, seed=seed)


def test_options_longer_than_a_block_continue_in_the_next() -> None:
    """Options of about a thousand steps draw three numbers in each."""
    options: dict[str, Any] = {"actions": "options", "mean_duration": 1000.0, "horizon": 5000, "num_terminals": 0}
    theirs = SyncVectorEnv([lambda: OptionMDPEnv(**options)] * 3)
    ours = OptionMDPVectorEnv(num_envs=3, **options)
    assert_alike(theirs, ours, steps=12)
    ours.reset(seed=3)
    longest = max(ours.step(np.zeros(3))[4]["duration"]["steps"].max() for _ in range(5))
    assert longest > DRAWN


def test_some_are_reset_with_a_mask_when_autoreset_is_disabled() -> None:
    mdp = random_option_mdp(0)
    theirs = SyncVectorEnv([lambda: OptionMDPEnv(mdp)] * 4, autoreset_mode=AutoresetMode.DISABLED)
    ours = OptionMDPVectorEnv(mdp, 4, autoreset_mode="Disabled")
    rng = np.random.default_rng(0)
    assert data_equivalence(ours.reset(seed=2), theirs.reset(seed=2), exact=True)
    for _ in range(100):
        actions = rng.integers(12, size=4)
        returned = [env.step(actions) for env in (ours, theirs)]
        assert data_equivalence(*returned, exact=True)
        ended = returned[0][2] | returned[0][3]
        if ended.any():
            with pytest.raises(gym.error.ResetNeeded, match="reset_mask"):
                ours.step(actions)
            returned = [env.reset(options={"reset_mask": ended.copy()}) for env in (ours, theirs)]
            assert data_equivalence(*returned, exact=True)


def test_an_environments_episodes_depend_on_its_own_seed_alone() -> None:
    def states(num_envs: int, seed: Any) -> list[list[int]]:
        envs = OptionMDPVectorEnv(num_envs=num_envs, autoreset_mode="SameStep")
        seen = [envs.reset(seed=seed)[1]["state"]]
        seen += [envs.step(np.full(num_envs, t % 12))[4]["state"] for t in range(200)]
        return np.array(seen).T.tolist()

    many = states(5, 10)
    assert states(2, 10) == many[:2]
    assert states(1, 13) == [many[3]]
    assert states(3, [14, 10, None])[:2] == [many[4], many[0]]


def test_made_by_gymnasium_with_a_spec_that_survives_json() -> None:
    options: dict[str, Any] = {"actions": "options", "autoreset_mode": "SameStep", "num_states": 9, "horizon": 30}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gym.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", **options)
        assert envs.spec is not None
        again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.spec.to_json()))
    assert isinstance(envs, OptionMDPVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert_alike(envs, again, steps=20)


def test_native_sync_and_async_vectors_return_the_same() -> None:
    options: dict[str, Any] = {"actions": "options", "num_states": 9, "horizon": 30}
    native = gym.make_vec(ID, num_envs=2, vectorization_mode="vector_entry_point", **options)
    for mode in ("sync", "async"):
        theirs = gym.make_vec(ID, num_envs=2, vectorization_mode=mode, **options)
        assert_alike(theirs, native, steps=60)
        theirs.close()
        theirs.close()
    native.close()
    native.close()


def test_render_says_where_each_episode_is() -> None:
    envs = OptionMDPVectorEnv(corridor(), 2, render_mode="ansi")
    envs.reset(seed=0)
    envs.step(np.array([0, 2]))
    assert envs.render() == ("# state 1, 1 of 100 steps\n", "# state 3 (terminal), 3 of 100 steps\n")
    assert OptionMDPVectorEnv(corridor(), 2).render() is None


def test_returned_arrays_are_the_callers_to_keep() -> None:
    envs = OptionMDPVectorEnv(num_envs=3, observation="dict")
    observation, info = envs.reset(seed=0)
    kept = [observation["obs"].copy(), observation["mask"].copy(), info["state"].copy()]
    masks = envs.action_masks()
    info["action_mask"][:] = 0
    np.testing.assert_array_equal(envs.action_masks(), masks)
    envs.step(np.zeros(3, dtype=np.int64))
    for array, before in zip((observation["obs"], observation["mask"], info["state"]), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_pinned_states_begin_where_asked() -> None:
    envs = OptionMDPVectorEnv(num_envs=3)
    assert envs.reset(seed=0, options={"state": [4, 1, 2]})[1]["state"].tolist() == [4, 1, 2]
    assert envs.reset(options={"state": 5})[1]["state"].tolist() == [5, 5, 5]


def test_a_step_before_any_reset_and_a_wrong_number_of_actions_are_refused() -> None:
    envs = OptionMDPVectorEnv(num_envs=2, actions="primitives")
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros(2))
    with pytest.raises(gym.error.ResetNeeded):
        OptionMDPEnv().step(np.int64(0))
    envs.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="one for each of 2"):
        envs.step(np.zeros(3))


@pytest.mark.parametrize("make", [OptionMDPEnv, OptionMDPVectorEnv])
def test_wrong_options_are_refused(make: Any) -> None:
    for options, message in (
        ({"observation": "pixels"}, "'pixels' is not supported"),
        ({"horizon": 0}, "horizon=0"),
        ({"render_mode": "human"}, "'human'"),
        ({"mean_duration": 0.5}, "mean_duration=0.5"),
        ({"actions": [0, 0]}, "distinct indices from 0 to 11"),
        ({"actions": []}, "no action"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**options)
    with pytest.raises(UnknownNameError, match="Did you mean 'options'"):
        make(actions="option")
    with pytest.raises(UnknownNameError, match=rf"keyword of {make.__name__} 'num_sates'.*Did you mean 'num_states'"):
        make(num_sates=3)
    with pytest.raises(UnknownNameError, match="keyword of the family 'num_sates'"):
        make(family={"num_sates": 3})
    env = make()
    for options, message in (({"state": 23}, "state=23.*not terminal, from 0 to 22"), ({"task": 1}, "'task'")):
        with pytest.raises(ConfigError, match=message):
            env.reset(options=options)


def test_wrong_vector_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_envs=0"):
        OptionMDPVectorEnv(num_envs=0)
    with pytest.raises(ConfigError, match=r"'sometimes'.*'NextStep', 'SameStep', 'Disabled'"):
        OptionMDPVectorEnv(autoreset_mode="sometimes")
    envs = OptionMDPVectorEnv(num_envs=2)
    with pytest.raises(ConfigError, match="1 seeds for 2"):
        envs.reset(seed=[1])
    with pytest.raises(ConfigError, match="3 states for 2"):
        envs.reset(options={"state": [1, 2, 3]})
    with pytest.raises(gym.error.ResetNeeded, match="all environments"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset()
    with pytest.raises(ConfigError, match=r"reset_mask must be bool of shape \(2,\)"):
        envs.reset(options={"reset_mask": np.array([1, 0])})
