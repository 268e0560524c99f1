"""Helpers for tests of environments that write programs: tasks, trails, and comparisons with `SyncVectorEnv`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from ra3gym.tasks import CodeTask, FunctionTests
from ra3gym.verify import Verdict

TASKS = [
    CodeTask("double", "def f(x):\n", "f", FunctionTests((([1, 2],), ([],), ([-1],)), ([2, 4], [], [-2]))),
    CodeTask("first", "# first\ndef f(x):\n", "f", FunctionTests((([3],), ([1, 1],)), (3, 1))),
    CodeTask("same", "# give x back, as it is\ndef f(x):\n", "f", FunctionTests((([3],), ([],)), ([3], []))),
]


def sync(make_one: Any, num_envs: int, mode: AutoresetMode) -> SyncVectorEnv:
    """Return Gymnasium's own vector over single environments."""
    return SyncVectorEnv([make_one] * num_envs, autoreset_mode=mode)


def trail(env: Any, seed: int, steps: int) -> list[Any]:
    """Return all results of an environment under random legal actions, over as many episodes as needed."""
    env.action_space.seed(seed)
    found: list[Any] = [env.reset(seed=seed)]
    for _ in range(steps):
        step = env.step(env.action_space.sample(found[-1][-1]["action_mask"]))
        step[-1].pop("verdict", None)  # holds the seconds that grading took
        found.append(step if not (step[2] or step[3]) else env.reset())
    return found


def random_actions(seed: int, steps: int, num_envs: int, num_actions: int) -> Any:
    """Return random actions, one in ten of them out of range."""
    rng = np.random.default_rng(seed)
    action_TE = rng.integers(num_actions, size=(steps, num_envs))
    return np.where(rng.random(action_TE.shape) < 0.1, num_actions, action_TE)


def untimed(data: Any) -> Any:
    """Return the same data without the seconds that grading took."""
    if isinstance(data, dict):
        return {key: untimed(value) for key, value in data.items()}
    if isinstance(data, tuple):
        return tuple(untimed(value) for value in data)
    if isinstance(data, np.ndarray) and data.dtype == object:
        return [
            replace(one, seconds=0.0, cpu_seconds=0.0) if isinstance(one, Verdict) else untimed(one) for one in data
        ]
    return data


def assert_same_trajectories(ours: VectorEnv[Any, Any, Any], theirs: VectorEnv[Any, Any, Any], action_TE: Any) -> int:
    """Step both side by side, and return the number of episodes that ended."""
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert data_equivalence(untimed(ours.reset(seed=5)), untimed(theirs.reset(seed=5)), exact=True)
    ended = 0
    for action_E in action_TE:
        mine, other = untimed(ours.step(action_E)), untimed(theirs.step(action_E))
        assert sorted(mine[4]) == sorted(other[4])
        assert data_equivalence(mine, other, exact=True)
        ended += int((mine[2] | mine[3]).sum())
    return ended
