"""What array-based vector environments share: seeds, masks of whom to reset, and infos in Gymnasium's batched form.

Shape suffixes: E environments, W of them concerned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode

from ra3gym.errors import ConfigError

Info: TypeAlias = dict[str, Any]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


class Where(NamedTuple):
    """Some of the environments: as an index that picks them, and as a mask."""

    rows_W: Any
    mask_E: BoolArray

    @classmethod
    def of(cls, mask_E: BoolArray) -> Where:
        return cls(np.flatnonzero(mask_E), mask_E)

    @classmethod
    def everywhere(cls, num_envs: int) -> Where:
        return cls(slice(None), np.ones(num_envs, dtype=np.bool_))

    def put(self, info: Info, key: str, values_W: npt.NDArray[Any]) -> None:
        """Set `info[key]`, an array over all environments, and `info["_" + key]`, where it holds; Gymnasium's way.

        `values_W` must be new: it becomes the caller's.
        """
        values_E = values_W
        if not isinstance(self.rows_W, slice):
            nothing = None if values_W.dtype == object else 0
            values_E = np.full((len(self.mask_E), *values_W.shape[1:]), nothing, dtype=values_W.dtype)
            values_E[self.rows_W] = values_W
        info[key], info[f"_{key}"] = values_E, self.mask_E.copy()


def parse_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode of that name; `ConfigError` if there is none."""
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(repr(one.value) for one in AutoresetMode)
        raise ConfigError(f"autoreset_mode={mode!r} is not supported; use one of {known}") from None


def chosen_by_mask(options: Mapping[str, Any], num_envs: int, begun: bool) -> BoolArray:
    """Which environments `options["reset_mask"]` resets; all without one.

    Raises:
        ConfigError: a mask of another shape or type, or without any environment.
        ResetNeeded: the first reset of all is to leave some out.
    """
    if "reset_mask" not in options:
        return np.ones(num_envs, dtype=np.bool_)
    chosen_E = np.asarray(options["reset_mask"])
    if chosen_E.shape != (num_envs,) or chosen_E.dtype != np.bool_ or not chosen_E.any():
        raise ConfigError(f"reset_mask must be bool of shape ({num_envs},), with at least one True")
    if not (begun or chosen_E.all()):
        raise gym.error.ResetNeeded("no episode has begun: the first reset() takes all environments")
    return chosen_E


def seed_generators(
    rngs: list[np.random.Generator | None], seed: int | Sequence[int | None] | None, chosen_E: BoolArray
) -> BoolArray:
    """Put new generators, in place, where a seed is given or there was none; only in the chosen environments.

    An int seeds environment i with `seed + i`, as Gymnasium's vector environments do.

    Returns:
        bool `(E,)`: where they are new.

    Raises:
        ConfigError: not one seed for each environment.
    """
    if seed is None or isinstance(seed, (int, np.integer)):
        seeds: list[int | None] = [None if seed is None else int(seed) + e for e in range(len(rngs))]
    else:
        seeds = [None if one is None else int(one) for one in seed]
    if len(seeds) != len(rngs):
        raise ConfigError(f"{len(seeds)} seeds for {len(rngs)} environments: give one for each, or a single int")
    new_E = np.zeros(len(rngs), dtype=np.bool_)
    for e in np.flatnonzero(chosen_E).tolist():
        if seeds[e] is not None or rngs[e] is None:
            rngs[e], _ = seeding.np_random(seeds[e])
            new_E[e] = True
    return new_E
