"""Walks through an environment by legal actions: repeatable, and copied as they go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.testing.differences import difference

Env: TypeAlias = gym.Env[Any, Any]
C = TypeVar("C")
Touch: TypeAlias = Callable[[Any, Any], None]
"""Called with each observation and info that the environment returned: the objects themselves, not copies."""


@dataclass(frozen=True)
class Moment:
    """What one `reset` or `step` of an environment, or of a vector environment, returned, copied at once.

    Attributes:
        call: the call, for messages: "step 3 after reset(seed=0)".
        action: the action of a step, `None` for a reset.
    """

    call: str
    observation: Any
    info: Any
    reward: Any = 0.0
    terminated: Any = False
    truncated: Any = False
    action: Any = None

    @property
    def over(self) -> bool:
        """Whether a single environment's episode has ended here."""
        return bool(self.terminated or self.truncated)


def walk(
    env: Env,
    seed: int,
    steps: int,
    *,
    actions: Sequence[Any] | None = None,
    touch: Touch = lambda *data: None,
    after: Moment | None = None,
) -> Iterator[Moment]:
    """Reset with a seed, then take `steps` steps; yield every moment. An ended episode is followed by a reset.

    Without `actions`, legal ones are drawn; they depend on the seed and the masks alone. With `after`, the last moment
    of an earlier walk, there is no reset at the beginning: the episode continues.
    """
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)

    def copied(call: str, observation: Any, info: Any, *outcome: Any) -> Moment:
        moment = Moment(call, deepcopy(observation), deepcopy(info), *outcome)
        touch(observation, info)
        return moment

    if after is None:
        moment = copied(f"reset(seed={seed})", *env.reset(seed=seed))
        yield moment
    else:
        moment = after
    for t in range(steps):
        action = pick(env.action_space, moment, rng) if actions is None else actions[t]
        observation, reward, terminated, truncated, info = env.step(action)
        call = f"step {t} after {f'reset(seed={seed})' if after is None else after.call}"
        moment = copied(call, observation, info, reward, terminated, truncated, action)
        yield moment
        if moment.over:
            moment = copied(f"the reset() after step {t}", *env.reset())
            yield moment


def record(
    env: Env,
    seed: int,
    steps: int,
    *,
    actions: Sequence[Any] | None = None,
    touch: Touch = lambda *data: None,
    after: Moment | None = None,
) -> list[Moment]:
    """Return all moments of a `walk`."""
    return list(walk(env, seed, steps, actions=actions, touch=touch, after=after))


def deep_copy(env: C) -> C:
    """Return a deep copy of an environment; `AssertionError` when it cannot be copied."""
    try:
        return deepcopy(env)
    except Exception as error:  # types that cannot be copied raise errors of many kinds
        raise AssertionError(
            f"in mid-episode it cannot be deep-copied: {type(error).__name__}: {error} "
            "(skip this check if it need not be copied)"
        ) from error


def walk_difference(
    first: Sequence[Moment], second: Sequence[Moment], measured: Collection[str], tolerance: float = 0.0
) -> str | None:
    """Return the first difference between two walks and the call that returned it; `None` without one."""
    for one, other in zip(first, second, strict=True):
        for name in ("action", "observation", "reward", "terminated", "truncated", "info"):
            a, b = getattr(one, name), getattr(other, name)
            if found := difference(a, b, measured=measured, tolerance=tolerance, path=name):
                return f"{found}, at {one.call}"
    return None


def method_mask(env: Env) -> Any:
    """Return what `action_masks()` returns; `None` without such a method."""
    return env.get_wrapper_attr("action_masks")() if env.has_wrapper_attr("action_masks") else None


def mask_of(observation: Any, info: Mapping[str, Any]) -> npt.NDArray[np.bool_] | None:
    """Return the mask of legal actions from an info or a Dict observation; `None` when neither has one."""
    mask = info.get("action_mask")
    if mask is None and isinstance(observation, Mapping):
        mask = observation.get("mask")
    return None if mask is None else np.asarray(mask).astype(np.bool_)


def pick(space: gym.Space[Any], moment: Moment, rng: np.random.Generator) -> Any:
    """Return a random legal action; any action of a space that is not Discrete."""
    if not isinstance(space, gym.spaces.Discrete):
        return space.sample()
    return pick_legal(space, mask_of(moment.observation, moment.info), rng)


def pick_legal(space: gym.spaces.Discrete, mask: npt.NDArray[np.bool_] | None, rng: np.random.Generator) -> np.int64:
    """Return a random action that the mask allows; any action without a mask, or when it allows none."""
    legal = np.arange(space.n) if mask is None or not mask.any() else np.flatnonzero(mask)
    return np.int64(space.start + rng.choice(legal))


def pick_illegal(space: gym.spaces.Discrete, mask: npt.NDArray[np.bool_] | None, rng: np.random.Generator) -> np.int64:
    """Return a random masked action, or one out of range: just below, just above, or far above."""
    masked = [] if mask is None else (space.start + np.flatnonzero(~mask)).tolist()
    out_of_range = [space.start - 1, space.start + space.n, space.start + 10 * space.n]
    return np.int64(rng.choice(masked if masked and rng.random() < 0.5 else out_of_range))


def misfit(space: gym.Space[Any], observation: Any, path: str = "the observation") -> str | None:
    """Return why an observation is not in its space, dtypes included; `None` if it is."""
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(observation, dict) or observation.keys() != space.spaces.keys():
            return f"{path} is not a dict with the keys {sorted(space.spaces)}"
        parts = (misfit(part, observation[key], f"{path}[{key!r}]") for key, part in space.spaces.items())
        return next((found for found in parts if found), None)
    if isinstance(space, (gym.spaces.Box, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)):
        if not isinstance(observation, np.ndarray):
            return f"{path} is {type(observation).__name__}, not an array of {space.dtype}"
        if observation.dtype != space.dtype or observation.shape != space.shape:
            return (
                f"{path} is {observation.dtype} of shape {observation.shape}; the space has {space.dtype} of shape "
                f"{space.shape}"
            )
    return None if space.contains(observation) else f"{path} is not in {space}"


def overwrite(*data: Any) -> None:
    """Overwrite all arrays in nested data and empty its dicts, as a careless caller might."""
    for part in data:
        if isinstance(part, dict):
            overwrite(*part.values())
            part.clear()
        elif isinstance(part, (list, tuple)):
            overwrite(*part)
        elif isinstance(part, np.ndarray) and part.flags.writeable and part.dtype != object:
            part[...] = 0
