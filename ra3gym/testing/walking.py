"""Walks through an environment by legal actions, as the checks take them: repeatable, and copied as they go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.testing.comparing import difference

Env: TypeAlias = gym.Env[Any, Any]
Touch: TypeAlias = Callable[[Any, Any], None]


@dataclass(frozen=True)
class Moment:
    """What one `reset` or `step` returned, of an environment or a vector of them, copied at the time.

    where: for messages. action: what led here, `None` for a reset.
    """

    where: str
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
    env: Env, seed: int, steps: int, *, actions: Sequence[Any] | None = None, touch: Touch = lambda *data: None
) -> Iterator[Moment]:
    """Reset with a seed and step on, from episode to episode; `touch` gets each observation and info themselves.

    Without `actions`, legal ones are drawn, by the seed and the masks alone.
    """
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)

    def seen(where: str, observation: Any, info: Any, *outcome: Any) -> Moment:
        moment = Moment(where, deepcopy(observation), deepcopy(info), *outcome)
        touch(observation, info)
        return moment

    moment = seen(f"reset(seed={seed})", *env.reset(seed=seed))
    yield moment
    for t in range(steps):
        action = pick(env.action_space, moment, rng) if actions is None else actions[t]
        observation, reward, terminated, truncated, info = env.step(action)
        where = f"step {t} behind reset(seed={seed})"
        moment = seen(where, observation, info, reward, terminated, truncated, action)
        yield moment
        if moment.over:
            moment = seen(f"the reset() behind step {t}", *env.reset())
            yield moment


def record(
    env: Env, seed: int, steps: int, *, actions: Sequence[Any] | None = None, touch: Touch = lambda *data: None
) -> list[Moment]:
    """The whole of a `walk`."""
    return list(walk(env, seed, steps, actions=actions, touch=touch))


def told_difference(
    first: Sequence[Moment], again: Sequence[Moment], measured: Collection[str], tolerance: float = 0.0
) -> str | None:
    """The first difference between two walks, and where it is; `None` without one."""
    for one, other in zip(first, again, strict=True):
        for name in ("action", "observation", "reward", "terminated", "truncated", "info"):
            a, b = getattr(one, name), getattr(other, name)
            if told := difference(a, b, measured=measured, tolerance=tolerance, path=name):
                return f"{told}, at {one.where}"
    return None


def method_mask(env: Env) -> Any:
    """What `action_masks()` says; `None` where there is no such method."""
    return env.get_wrapper_attr("action_masks")() if env.has_wrapper_attr("action_masks") else None


def mask_of(observation: Any, info: Mapping[str, Any]) -> npt.NDArray[np.bool_] | None:
    """The legal actions by an info or a Dict observation; `None` where neither says."""
    mask = info.get("action_mask")
    if mask is None and isinstance(observation, Mapping):
        mask = observation.get("mask")
    return None if mask is None else np.asarray(mask).astype(np.bool_)


def pick(space: gym.Space[Any], moment: Moment, rng: np.random.Generator) -> Any:
    """A legal action by chance; of a space that is not Discrete, any."""
    if not isinstance(space, gym.spaces.Discrete):
        return space.sample()
    return pick_legal(space, mask_of(moment.observation, moment.info), rng)


def pick_legal(space: gym.spaces.Discrete, mask: npt.NDArray[np.bool_] | None, rng: np.random.Generator) -> np.int64:
    """A legal action by chance; any, where the mask has no say."""
    legal = np.arange(space.n) if mask is None or not mask.any() else np.flatnonzero(mask)
    return np.int64(space.start + rng.choice(legal))


def pick_illegal(space: gym.spaces.Discrete, mask: npt.NDArray[np.bool_] | None, rng: np.random.Generator) -> np.int64:
    """A masked action by chance, or one out of range: just below, just above, or far above."""
    masked = [] if mask is None else (space.start + np.flatnonzero(~mask)).tolist()
    beside = [space.start - 1, space.start + space.n, space.start + 10 * space.n]
    return np.int64(rng.choice(masked if masked and rng.random() < 0.5 else beside))


def outside(space: gym.Space[Any], observation: Any, path: str = "the observation") -> str | None:
    """What keeps an observation from fitting its space, dtypes included; `None` if it fits."""
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(observation, dict) or observation.keys() != space.spaces.keys():
            return f"{path} is no dict with the keys {sorted(space.spaces)}"
        parts = (outside(one, observation[key], f"{path}[{key!r}]") for key, one in space.spaces.items())
        return next((told for told in parts if told), None)
    if isinstance(space, (gym.spaces.Box, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)):
        if not isinstance(observation, np.ndarray):
            return f"{path} is {type(observation).__name__}, not an array of {space.dtype}"
        if observation.dtype != space.dtype or observation.shape != space.shape:
            return (
                f"{path} is {observation.dtype} of shape {observation.shape}; the space has {space.dtype} of shape "
                f"{space.shape}"
            )
    return None if space.contains(observation) else f"{path} is not in {space}"


def scribble(*data: Any) -> None:
    """Overwrite all arrays in nested data, and empty its dicts, as a careless caller might."""
    for one in data:
        if isinstance(one, dict):
            scribble(*one.values())
            one.clear()
        elif isinstance(one, (list, tuple)):
            scribble(*one)
        elif isinstance(one, np.ndarray) and one.flags.writeable and one.dtype != object:
            one[...] = 0
