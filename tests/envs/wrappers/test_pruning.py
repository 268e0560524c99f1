"""`PruneActions`: masks in every dialect, re-indexed spaces, and environments that know of no masks."""

from __future__ import annotations

import json
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import MaskablePPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from ra3gym.abstractions.inference.posterior import LatentChain
from ra3gym.abstractions.inference.problem import problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.abstractions.options import random_option_mdp
from ra3gym.abstractions.pruning import Evidence, at_random, by_policy_mass
from ra3gym.envs.option_mdp.env import OptionMDPEnv
from ra3gym.envs.option_mdp.vector_env import OptionMDPVectorEnv
from ra3gym.envs.trace_inference.env import TraceInferenceEnv
from ra3gym.envs.wrappers import PruneActions, PruneVectorActions
from ra3gym.errors import ConfigError

ID = "ra3gym/OptionMDP-v0"
SUBSET = [1, 4, 5, 9]


class Unmasked(gym.Env[Any, Any]):
    """Three actions, no masks; refuses others."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return 0, {"logprobs": np.log([0.5, 0.3, 0.2])}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise gym.error.InvalidAction(f"no action {action}")
        return 1, float(action), True, False, {}


@pytest.mark.parametrize("reindex", [False, True])
@pytest.mark.parametrize("observation", ["onehot", "dict", "index"])
def test_gymnasium_and_stable_baselines3_find_nothing_to_say(reindex: bool, observation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
        env = PruneActions(gym.make(ID, observation=observation), SUBSET, reindex)
        check_env(env, skip_render_check=True)
        check_env_sb3(env)


@pytest.mark.parametrize("reindex", [False, True])
def test_masks_agree_in_every_dialect_and_are_anded_with_the_subset(reindex: bool) -> None:
    env = PruneActions(gym.make(ID, observation="dict"), SUBSET, reindex)
    observation, info = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        own_Z = env.unwrapped.action_masks()
        expected_Z = np.zeros(12, dtype=bool)
        expected_Z[SUBSET] = own_Z[SUBSET]
        expected = expected_Z[SUBSET] if reindex else expected_Z
        for mask in (info["action_mask"], env.action_masks(), observation["mask"]):
            np.testing.assert_array_equal(mask, expected)
        assert info["action_mask"].dtype == observation["mask"].dtype == np.int8
        assert observation in env.observation_space
        observation, _, terminated, truncated, info = env.step(rng.choice(np.flatnonzero(expected)))
        assert not info["illegal_action"]
        if terminated or truncated:
            observation, info = env.reset()


def test_both_forms_take_the_same_steps() -> None:
    mask, small = (PruneActions(gym.make(ID), SUBSET, reindex) for reindex in (False, True))
    plain = gym.make(ID)
    for env in (mask, small, plain):
        env.reset(seed=1)
    for i in [0, 1, 2, 3, 3, 2, 1]:
        returned = [env.step(np.int64(a)) for env, a in ((mask, SUBSET[i]), (small, i), (plain, SUBSET[i]))]
        for one in returned:
            one[4].pop("action_mask")
        assert data_equivalence(returned[0], returned[1], exact=True)
        assert data_equivalence(returned[0], returned[2], exact=True)


def test_a_pruned_action_is_what_an_illegal_one_is() -> None:
    env = PruneActions(gym.make(ID), SUBSET)
    _, before = env.reset(seed=0)
    for action in (0, 11):
        _, reward, _, _, info = env.step(np.int64(action))
        assert (reward, info["state"], info["illegal_action"]) == (0.0, before["state"], True)


def test_where_none_of_the_kept_is_legal_the_kept_are_open() -> None:
    mdp = random_option_mdp(0)
    (elsewhere,) = np.nonzero(~mdp.initiation_OS[0] & ~mdp.terminal_S)
    env = PruneActions(OptionMDPEnv(mdp, actions="options"), [0])
    _, info = env.reset(options={"state": int(elsewhere[0])})
    assert info["action_mask"].tolist() == [1, *[0] * 7]
    assert env.step(np.int64(0))[4]["illegal_action"]


def test_a_pruned_latent_pays_the_floor_in_trace_inference() -> None:
    problem = problem_from_chain(LatentChain.under(StickyPrior(0.5, 4), [np.full((5, 4), -1.0)]))
    env = PruneActions(TraceInferenceEnv(problem), [0, 2])
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [1, 0, 1, 0]
    _, reward, _, _, info = env.step(np.int64(1))
    assert (reward, info["log_joint"], info["illegal_action"]) == (-100.0, -np.inf, True)
    env.reset(seed=0)
    small = PruneActions(TraceInferenceEnv(problem), [0, 2], reindex=True)
    small.reset(seed=0)
    assert data_equivalence(small.step(np.int64(1))[:4], env.step(np.int64(2))[:4], exact=True)


def test_environments_without_masks_get_them_and_arrays_per_action_are_cut() -> None:
    env = PruneActions(Unmasked(), [0, 2])
    _, info = env.reset()
    assert info["action_mask"].tolist() == [1, 0, 1]
    assert env.action_masks().tolist() == [True, False, True]
    assert len(info["logprobs"]) == 3
    with pytest.raises(gym.error.InvalidAction, match=r"was pruned.*reindex=True"):
        env.step(np.int64(1))
    small = PruneActions(Unmasked(), [0, 2], reindex=True)
    _, info = small.reset()
    np.testing.assert_allclose(np.exp(info["logprobs"]), [0.5, 0.2])
    assert small.action_masks().tolist() == [True, True]
    assert small.step(np.int64(1))[1] == 2.0


def test_spec_survives_json() -> None:
    env = PruneActions(gym.make(ID), SUBSET, reindex=True)
    assert env.spec is not None
    json.dumps(env.spec.additional_wrappers[-1].kwargs)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.get_wrapper_attr("kept") == tuple(SUBSET)
    assert again.action_space == env.action_space == gym.spaces.Discrete(4)
    assert data_equivalence(again.reset(seed=2), env.reset(seed=2), exact=True)
    assert data_equivalence(again.step(np.int64(3)), env.step(np.int64(3)), exact=True)


def test_a_rules_report_is_a_subset() -> None:
    mdp = random_option_mdp(0)
    report = by_policy_mass(np.arange(1.0, 13.0) / 78.0, mass=0.5, evidence=Evidence(tasks=[mdp]))
    env = PruneActions(OptionMDPEnv(mdp), report)
    assert env.kept == report.kept == (8, 9, 10, 11)
    assert report.error_is == "exact"
    with pytest.raises(ConfigError, match="chosen among 5 actions; this environment has 12"):
        PruneActions(OptionMDPEnv(mdp), at_random(5, 2, np.random.default_rng(0)))


def test_stable_baselines3_learns_within_the_subset() -> None:
    env = PruneActions(gym.make(ID, actions="options"), [0, 1, 2, 5])
    model = MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=32, seed=0).learn(128)
    obs, info = env.reset(seed=0)
    for _ in range(30):
        action, _ = model.predict(obs, action_masks=env.action_masks())
        assert info["action_mask"][action] == 1
        obs, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            obs, info = env.reset()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("reindex", [False, True])
@pytest.mark.parametrize("observation", ["onehot", "dict"])
def test_the_vector_form_is_that_of_wrapped_singles(mode: AutoresetMode, reindex: bool, observation: Any) -> None:
    """Around the array form, the same as `SyncVectorEnv` over wrapped environments, infos included."""
    mdp = random_option_mdp(0)
    theirs = SyncVectorEnv(
        [lambda: PruneActions(OptionMDPEnv(mdp, observation=observation), SUBSET, reindex)] * 4, autoreset_mode=mode
    )
    ours = PruneVectorActions(
        OptionMDPVectorEnv(mdp, 4, observation=observation, autoreset_mode=mode), SUBSET, reindex=reindex
    )
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.metadata["autoreset_mode"] is mode
    rng = np.random.default_rng(0)
    returned = [env.reset(seed=5) for env in (ours, theirs)]
    assert returned[0][0] in ours.observation_space
    for _ in range(200):
        assert data_equivalence(*returned, exact=True)
        np.testing.assert_array_equal(ours.action_masks(), returned[0][-1]["action_mask"])
        actions = rng.integers(ours.single_action_space.n, size=4)
        returned = [env.step(actions) for env in (ours, theirs)]


def test_a_vector_environment_without_masks_gets_them() -> None:
    envs = PruneVectorActions(SyncVectorEnv([Unmasked] * 2), [0, 2])
    _, info = envs.reset(seed=0)
    assert info["action_mask"].tolist() == [[1, 0, 1]] * 2
    assert envs.action_masks().tolist() == [[True, False, True]] * 2
    with pytest.raises(gym.error.InvalidAction, match="was pruned"):
        envs.step(np.array([0, 1]))


def test_wrong_subsets_and_spaces_are_refused() -> None:
    for subset in ([], [0, 0], [12], [-1]):
        with pytest.raises(ConfigError, match="from 0 to 11"):
            PruneActions(OptionMDPEnv(), subset)
    with pytest.raises(ConfigError, match="pruning takes Discrete"):
        PruneActions(gym.make("Pendulum-v1"), [0])
