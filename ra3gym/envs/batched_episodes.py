"""What the vector environments share: a base class for seeds, resets and checks, and infos in Gymnasium's batched form.

Shape letters: see CONTRIBUTING.md (E environments, B of them selected, A actions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ra3gym.envs.keywords import refuse_unknown_options
from ra3gym.errors import ConfigError

Info: TypeAlias = dict[str, Any]
Observation: TypeAlias = Any
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]


class Selection(NamedTuple):
    """Some of the environments.

    Attributes:
        index_B: their numbers, or a slice over all; it indexes arrays over all environments.
        mask_E: bool, true at them.
    """

    index_B: Any
    mask_E: BoolArray

    @classmethod
    def of_mask(cls, mask_E: BoolArray) -> Selection:
        """Select the environments at which a mask is true."""
        return cls(np.flatnonzero(mask_E), mask_E)

    @classmethod
    def of_rows(cls, rows: Sequence[int], num_envs: int) -> Selection:
        """Select environments by their numbers, in this order."""
        index_B = np.asarray(rows, dtype=np.int64)
        mask_E = np.zeros(num_envs, dtype=np.bool_)
        mask_E[index_B] = True
        return cls(index_B, mask_E)

    @classmethod
    def of_full_columns(cls, mask_E: BoolArray) -> Selection:
        """Select by a mask, for columns that are already over all environments and zero outside of the mask."""
        return cls(slice(None), mask_E)

    @classmethod
    def of_all(cls, num_envs: int) -> Selection:
        """Select all environments."""
        return cls(slice(None), np.ones(num_envs, dtype=np.bool_))

    def __bool__(self) -> bool:
        return bool(self.mask_E.any() if isinstance(self.index_B, slice) else len(self.index_B))

    def add_to(self, info: Info, columns: Mapping[str, Any]) -> None:
        """Set `info[key]`, an array over all environments, and the mask `info["_" + key]`, for each column.

        This is Gymnasium's form of infos: a column that is a dict becomes an info itself, and nothing is set for an
        empty selection. Columns must be new in memory, since they may be returned to the caller.
        """
        if not self:
            return
        for key, column_B in columns.items():
            if isinstance(column_B, dict):
                values_E: Any = {}
                self.add_to(values_E, column_B)
            elif isinstance(self.index_B, slice):
                values_E = column_B
            else:
                blank = np.empty if column_B.dtype == object else np.zeros  # an empty array of objects holds None
                values_E = blank((len(self.mask_E), *column_B.shape[1:]), dtype=column_B.dtype)
                values_E[self.index_B] = column_B
            info[key], info[f"_{key}"] = values_E, self.mask_E.copy()

    def add_final_to(self, info: Info, observed_B: Observation, final: Info) -> None:
        """Set `final_obs`, one observation per environment, and `final_info`, of episodes that ended in this step."""
        if not self:
            return
        final_obs_E = np.empty(len(self.mask_E), dtype=object)
        each_B: Iterable[Any] = observed_B
        if isinstance(observed_B, dict):
            each_B = (dict(zip(observed_B, parts, strict=True)) for parts in zip(*observed_B.values(), strict=True))
        for e, observation in zip(self.index_B.tolist(), each_B, strict=True):
            final_obs_E[e] = observation
        info["final_obs"], info["_final_obs"] = final_obs_E, self.mask_E.copy()
        info["final_info"], info["_final_info"] = final, self.mask_E.copy()


def select_columns(columns: Info, kept: Sequence[int]) -> Info:
    """Return these rows of every column, in nested dicts too."""
    return {
        key: select_columns(column, kept) if isinstance(column, dict) else column[kept]
        for key, column in columns.items()
    }


def first_row(columns: Info) -> Info:
    """Return row 0 of every column as a single environment's info: numbers as Python's, arrays as they are."""
    info: Info = {}
    for key, column in columns.items():
        value = first_row(column) if isinstance(column, dict) else column[0]
        info[key] = value.item() if isinstance(value, np.generic) else value
    return info


class BatchedEnv(gym.vector.VectorEnv[Observation, IntArray, npt.NDArray[Any]]):
    """E environments with Discrete actions in one object; a base class.

    Environment e has its own generator, seeded with `seed + e`, so its episodes do not depend on the number of
    environments. Returned arrays are new in each call and may be kept. `action_masks()` gives all masks, bool `(E, A)`.

    `reset` takes an int, a list of one seed (or `None`) per environment, or `None`. One of its options pins an
    environment's next episode (to a task, a trace, a state): one value for all, or a sequence of one per environment.
    The option `reset_mask`, bool `(E,)`, says which environments to reset.

    Autoreset modes: NEXT_STEP (default): the step after an episode's last ignores the action and begins the next
    episode. SAME_STEP: the last step returns the next episode's first observation; the old episode's last observation
    and info are in `info["final_obs"]` and `info["final_info"]`. DISABLED: reset ended environments with `reset_mask`.
    """

    def __init__(
        self,
        num_envs: int,
        action_space: gym.spaces.Discrete,
        observation_space: gym.Space[Any],
        *,
        mode: AutoresetMode,
        render_mode: str | None,
    ) -> None:
        self.num_envs = num_envs
        self._mode = mode
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self.render_mode = render_mode
        self.single_action_space = action_space
        self.action_space = batch_space(action_space, num_envs)
        self.single_observation_space = observation_space
        self.observation_space = batch_space(observation_space, num_envs)
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._has_begun = False

    def _prepare_reset(
        self,
        seed: int | Sequence[int | None] | None,
        options: Mapping[str, Any],
        pin: str,
        index_of: Callable[[Any], int],
    ) -> tuple[BoolArray, BoolArray, IntArray]:
        """Check the arguments of `reset`, and seed the generators.

        Args:
            seed: as `reset` takes it.
            options: as `reset` takes them.
            pin: the option that pins an environment's episode.
            index_of: from a value of that option to its number; raises for an unknown value.

        Returns:
            Three arrays `(E,)`: which environments to reset, which generators are new, and the number that each
            environment is pinned to (-1 for none).

        Raises:
            ConfigError: an unknown option, a mask of another shape or type or without any environment, or not one seed
                or pin for each environment.
            ResetNeeded: the very first reset leaves some environments out.
        """
        refuse_unknown_options(options, (pin, "reset_mask"))
        chosen_E = chosen_by_mask(options, self.num_envs, self._has_begun)
        pinned_E = pinned_to(options, pin, self.num_envs, index_of)
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
        new_E = seed_generators(self._rngs, seed, chosen_E)
        return chosen_E, new_E, pinned_E

    def _checked_actions(self, actions: npt.ArrayLike, ended_E: BoolArray) -> IntArray:
        """Return the actions of a step as int64 `(E,)`.

        Raises:
            ResetNeeded: there was no reset, or, with autoreset disabled, an environment has ended.
            InvalidAction: not one action for each environment.
        """
        if not self._has_begun:
            raise gym.error.ResetNeeded("no episode has begun: call reset() first")
        if self._mode is AutoresetMode.DISABLED and ended_E.any():
            raise gym.error.ResetNeeded(
                f"environment {int(ended_E.argmax())} has ended: reset it with options={{'reset_mask': ...}}"
            )
        action_E = np.ascontiguousarray(actions, dtype=np.int64)
        if action_E.shape != (self.num_envs,):
            raise gym.error.InvalidAction(
                f"actions of shape {action_E.shape}: give one for each of {self.num_envs} environments"
            )
        return action_E


def chosen_by_mask(options: Mapping[str, Any], num_envs: int, has_begun: bool) -> BoolArray:
    """Return which environments `options["reset_mask"]` resets, all without one. Errors: see `BatchedEnv`."""
    if "reset_mask" not in options:
        return np.ones(num_envs, dtype=np.bool_)
    chosen_E = np.asarray(options["reset_mask"])
    if chosen_E.shape != (num_envs,) or chosen_E.dtype != np.bool_ or not chosen_E.any():
        raise ConfigError(f"reset_mask must be bool of shape ({num_envs},), with at least one True")
    if not (has_begun or chosen_E.all()):
        raise gym.error.ResetNeeded("no episode has begun: the first reset() takes all environments")
    return chosen_E


def pinned_to(options: Mapping[str, Any], pin: str, num_envs: int, index_of: Callable[[Any], int]) -> IntArray:
    """Return the number that `options[pin]` pins each environment to, int64 `(E,)`; -1 where the option is missing."""
    if pin not in options:
        return np.full(num_envs, -1)
    wanted, name = options[pin], pin.replace("_", " ")
    if isinstance(wanted, str) or not isinstance(wanted, (Sequence, np.ndarray)):
        return np.full(num_envs, index_of(wanted))
    if len(wanted) != num_envs:
        raise ConfigError(f"{len(wanted)} {name}s for {num_envs} environments: give one for each, or a single {name}")
    return np.array([index_of(value) for value in wanted])


def seed_generators(
    rngs: list[np.random.Generator], seed: int | Sequence[int | None] | None, chosen_E: BoolArray
) -> BoolArray:
    """Replace, in place, the generators of the chosen environments that a seed is given for.

    An int seeds environment e with `seed + e`, as in Gymnasium's vector environments.

    Returns:
        bool `(E,)`: which generators are new.

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
        if seeds[e] is not None:
            rngs[e], _ = seeding.np_random(seeds[e])
            new_E[e] = True
    return new_E
