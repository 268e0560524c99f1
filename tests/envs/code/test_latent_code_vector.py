"""`LatentCode-v0` in one batch: the same as `SyncVectorEnv` over single environments, step by step."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode

from ra3gym import lm
from ra3gym.envs.code.latent import LatentCodeEnv, LatentCodeVectorEnv
from ra3gym.errors import ConfigError, JudgeError, UnknownNameError
from tests.envs.code.code_vector_cases import TASKS, assert_same_trajectories, random_actions, sync, untimed

ID = "ra3gym/LatentCode-v0"
K = 4
AUTORESET = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"observation": "tokens", "decoder": "greedy"},
    {"observation": "dict", "top_k": 2, "max_decisions": 3},
    {
        "observation": "dict",
        "segment_lines": 1,
        "segment_tokens": 5,
        "temperature": 0.7,
        "reward": "all",
        "shaping": {"format": 0.5, "length": -1.0},
    },
]


@pytest.fixture(scope="session")
def loaded(tiny_model_folder: Path) -> lm.LoadedModel:
    """In float64, so that results do not depend on the size of the batch."""
    loaded = lm.load(tiny_model_folder)
    loaded.model.double()
    return loaded


@pytest.fixture
def make(loaded: lm.LoadedModel) -> Iterator[Any]:
    """Makes vector environments over the tasks, and closes them."""
    made: list[LatentCodeVectorEnv] = []

    def build(num_envs: int = 2, **options: Any) -> LatentCodeVectorEnv:
        options = {"model": loaded, "tasks": TASKS, "max_new_tokens": 24} | options
        made.append(LatentCodeVectorEnv(num_envs=num_envs, **options))
        return made[-1]

    yield build
    for envs in made:
        envs.close()


@pytest.mark.parametrize("mode", AUTORESET, ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("num_envs", [1, 5])
def test_it_returns_what_gymnasiums_own_vector_returns(
    make: Any, loaded: lm.LoadedModel, options: dict[str, Any], mode: AutoresetMode, num_envs: int
) -> None:
    options = {"max_new_tokens": 24} | options
    theirs = sync(lambda: LatentCodeEnv(loaded, TASKS, **options), num_envs, mode)
    ours = make(num_envs, autoreset_mode=mode, **options)
    ended = assert_same_trajectories(ours, theirs, random_actions(0, 16, num_envs, K))
    assert ended >= num_envs
    theirs.close()


def test_an_environment_does_not_depend_on_how_many_there_are(make: Any) -> None:
    few, many = make(2), make(7)
    mine, others = few.reset(seed=3), many.reset(seed=3)
    for action_E in random_actions(1, 12, 7, K):
        for one, other in zip(mine[0], others[0][:2], strict=True):
            np.testing.assert_array_equal(one, other)
        assert few.programs == many.programs[:2]
        mine, others = few.step(action_E[:2]), many.step(action_E)
        for one, other in zip(mine[1:4], others[1:4], strict=True):
            np.testing.assert_array_equal(one, other[:2])


def test_made_by_gymnasium_with_a_spec_that_survives_json(tiny_model_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"model": str(tiny_model_folder), "max_new_tokens": 12, "observation": "dict"}
        envs = gym.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", **options)
        assert isinstance(envs.unwrapped, LatentCodeVectorEnv)
        assert envs.spec is not None
        kwargs = json.loads(envs.spec.to_json())["kwargs"]
        again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.spec.to_json()), num_envs=3)
        assert kwargs["max_new_tokens"] == 12
        assert data_equivalence(envs.reset(seed=1), again.reset(seed=1), exact=True)
        assert data_equivalence(untimed(envs.step(np.zeros(3))), untimed(again.step(np.zeros(3))), exact=True)
        for one in (envs, again):
            one.close()
            one.close()


def test_returned_arrays_are_the_callers_to_keep(make: Any) -> None:
    envs = make(3, observation="dict")
    observation, info = envs.reset(seed=0)
    kept = {key: value.copy() for key, value in (observation | info).items()}
    for _ in range(6):
        envs.step(np.zeros(3, dtype=np.int64))
    for key, value in (observation | info).items():
        np.testing.assert_array_equal(value, kept[key])


def test_some_are_reset_with_a_mask_when_autoreset_is_disabled(make: Any) -> None:
    envs = make(3, autoreset_mode="Disabled", max_new_tokens=1)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros(3))
    envs.reset(seed=0, options={"task_id": ["double", "first", "same"]})
    *_, truncated, info = envs.step(np.zeros(3))
    assert truncated.all()
    assert info["task_id"].tolist() == ["double", "first", "same"]
    with pytest.raises(gym.error.ResetNeeded, match="environment 0"):
        envs.step(np.zeros(3))
    mask = np.array([True, False, True])
    _, info = envs.reset(options={"task_id": "first", "reset_mask": mask})
    assert info["_task_id"].tolist() == mask.tolist()
    with pytest.raises(gym.error.ResetNeeded, match="environment 1"):
        envs.step(np.zeros(3))
    envs.reset(options={"reset_mask": ~mask})
    assert envs.step(np.zeros(3))[3].all()


def test_an_illegal_action_leaves_the_others_alone(make: Any) -> None:
    wrong, right = make(3), make(3)
    for envs in (wrong, right):
        envs.reset(seed=0)
    info = wrong.step(np.array([1, K, 2]))[4]
    right.step(np.array([1, 0, 2]))
    assert info["illegal_action"].tolist() == [False, True, False]
    assert wrong.programs[::2] == right.programs[::2]
    assert info["segment"][1] == ""


def test_masks_and_rendered_programs_are_those_of_the_episodes(make: Any) -> None:
    envs = make(2, top_k=1, render_mode="ansi")
    _, info = envs.reset(seed=0, options={"task_id": "first"})
    np.testing.assert_array_equal(envs.action_masks(), info["action_mask"])
    assert envs.render() == ("# first: 0 decisions, 0 of 24 tokens\n# first\ndef f(x):\n\n",) * 2
    assert make(2).render() is None


def test_it_works_with_no_arguments_and_solves_tasks() -> None:
    envs = gym.make_vec(ID, num_envs=8, decoder="greedy")
    _, info = envs.reset(seed=0)
    rewards: list[float] = []
    for _ in range(12):
        _, reward, terminated, truncated, info = envs.step(info["logprobs"].argmax(1))
        rewards += reward[terminated | truncated].tolist()
    assert np.mean(rewards) > 0.5
    envs.close()


def test_wrong_options_are_refused(make: Any) -> None:
    for options, message in (
        ({"num_envs": 0}, "num_envs=0"),
        ({"autoreset_mode": "sometimes"}, "'sometimes'.*'NextStep'"),
        ({"decoder": "beam"}, "'sample', 'greedy'"),
        ({"render_mode": "human"}, "None or 'ansi'"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**options)
    envs = make(2)
    with pytest.raises(ConfigError, match="3 seeds for 2"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(ConfigError, match="1 task ids for 2"):
        envs.reset(options={"task_id": ["double"]})
    with pytest.raises(ConfigError, match="reset_mask must be bool"):
        envs.reset(options={"reset_mask": [1, 0]})
    with pytest.raises(ConfigError, match="'tasks'"):
        envs.reset(options={"tasks": "double"})
    with pytest.raises(UnknownNameError, match="'dubble'"):
        envs.reset(options={"task_id": "dubble"})
    envs.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="2 environments"):
        envs.step(np.zeros(3))


def test_a_judge_that_is_down_is_an_error_and_not_a_reward(make: Any) -> None:
    envs = make(2, max_new_tokens=1)
    envs.reset(seed=0)
    envs.step(np.zeros(2))
    assert envs.problem._grader is not None
    envs.problem._grader.judge.close()
    envs.reset(seed=0)
    with pytest.raises(JudgeError, match="closed"):
        envs.step(np.zeros(2))


def test_async_environments_write_the_same(tiny_model_folder: Path) -> None:
    options = {"model": str(tiny_model_folder), "max_new_tokens": 12, "decoder": "greedy", "observation": "tokens"}
    ours = gym.make_vec(ID, num_envs=2, **options)
    theirs = gym.make_vec(ID, num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"}, **options)
    assert data_equivalence(ours.reset(seed=2)[0], theirs.reset(seed=2)[0], exact=True)
    for action_E in random_actions(3, 4, 2, K):
        mine, other = ours.step(action_E), theirs.step(action_E)
        assert data_equivalence(mine[:4], other[:4], exact=True)
    ours.close()
    theirs.close()
