"""`TokenCode-v0` in one batch: the same as `SyncVectorEnv` over single environments, step by step."""

from __future__ import annotations

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
from ra3gym.envs.code.token import TokenCodeEnv, TokenCodeVectorEnv
from ra3gym.errors import ConfigError
from tests.envs.code.code_vector_cases import TASKS, assert_same_trajectories, random_actions, sync

ID = "ra3gym/TokenCode-v0"
AUTORESET = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]
VARIANTS: list[dict[str, Any]] = [
    {"top_k": 6},
    {"top_k": 6, "observation": "tokens"},
    {"action_space": "full", "observation": "dict", "reward": "all", "shaping": {"format": 0.5, "length": -1.0}},
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
    made: list[TokenCodeVectorEnv] = []

    def build(num_envs: int = 2, **options: Any) -> TokenCodeVectorEnv:
        made.append(TokenCodeVectorEnv(**({"model": loaded, "tasks": TASKS, "num_envs": num_envs} | options)))
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
    options = {"max_new_tokens": 7} | options
    theirs = sync(lambda: TokenCodeEnv(loaded, TASKS, **options), num_envs, mode)
    ours = make(num_envs, autoreset_mode=mode, **options)
    action_TE = random_actions(0, 25, num_envs, int(ours.single_action_space.n))
    if options.get("action_space") == "full":  # some end early, so that rows have different lengths
        action_TE[np.random.default_rng(1).random(action_TE.shape) < 0.1] = loaded.tokenizer.eos_token_id
    ended = assert_same_trajectories(ours, theirs, action_TE)
    assert ended >= 3 * num_envs
    theirs.close()


def test_made_by_gymnasium_with_a_spec_that_survives_json(tiny_model_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"model": str(tiny_model_folder), "top_k": 4, "autoreset_mode": "SameStep"}
        envs = gym.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", **options)
        assert isinstance(envs.unwrapped, TokenCodeVectorEnv)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        assert envs.spec is not None
        again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.spec.to_json()), num_envs=3)
        assert data_equivalence(envs.reset(seed=1), again.reset(seed=1), exact=True)
        assert data_equivalence(envs.step(np.zeros(3)), again.step(np.zeros(3)), exact=True)
        for one in (envs, again):
            one.close()
            one.close()


def test_an_expert_types_every_solution_at_once_and_is_paid_in_full(make: Any, loaded: lm.LoadedModel) -> None:
    solutions = {"double": "    return [2 * v for v in x]\n", "first": "    return x[0]\n", "same": "    return x\n"}
    ids = [[*loaded.tokenizer.encode(text), loaded.tokenizer.eos_token_id] for text in solutions.values()]
    envs = make(3, action_space="full", autoreset_mode="Disabled", render_mode="ansi")
    envs.reset(options={"task_id": list(solutions)})
    paid = np.zeros(3)
    for t in range(max(map(len, ids))):
        for e in range(3):
            if t == len(ids[e]):  # done: let it idle at the same task
                mask = np.arange(3) == e
                envs.reset(options={"task_id": list(solutions), "reset_mask": mask})
        over = [t >= len(row) for row in ids]
        action_E = np.array([ids[e][t] if not over[e] else loaded.tokenizer.encode("x")[0] for e in range(3)])
        _, reward_E, terminated_E, _, info = envs.step(action_E)
        paid += reward_E
        assert terminated_E.tolist() == [t == len(row) - 1 for row in ids]
    assert paid.tolist() == [1.0, 1.0, 1.0]
    longest = int(np.argmax(list(map(len, ids))))
    assert info["verdict"][longest].passed
    assert "3 of 3 tests passed (passed)" in envs.render()[longest]


def test_an_illegal_action_leaves_the_others_alone(make: Any) -> None:
    wrong, right = make(3, top_k=5), make(3, top_k=5)
    for envs in (wrong, right):
        envs.reset(seed=0)
    info = wrong.step(np.array([1, 99, 2]))[4]
    right.step(np.array([1, 0, 2]))
    assert info["illegal_action"].tolist() == [False, True, False]
    assert wrong.programs[::2] == right.programs[::2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs=0"),
        ({"autoreset_mode": "sometimes"}, "'sometimes'.*'NextStep'"),
        ({"action_space": "some"}, "'topk', 'full'"),
        ({"top_k": 0}, "top_k=0"),
    ],
)
def test_wrong_options_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)
