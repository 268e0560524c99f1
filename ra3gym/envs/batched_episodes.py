"""What the batched vector environments share: a base class for seeds, resets and the checks ahead of a step, and infos
in Gymnasium's batched form.

Shape suffixes: E environments, W of them concerned.
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

from ra3gym.envs.options import refuse_unknown_options
from ra3gym.errors import ConfigError

Info: TypeAlias = dict[str, Any]
Observation: TypeAlias = Any
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]


class Where(NamedTuple):
    """Some of the environments: as an index that picks them, and as a mask."""

    rows_W: Any
    mask_E: BoolArray

    @classmethod
    def of(cls, mask_E: BoolArray) -> Where:
        return cls(np.flatnonzero(mask_E), mask_E)

    @classmethod
    def at(cls, rows: Sequence[int], num_envs: int) -> Where:
        """Those of the given numbers, in this order."""
        rows_W = np.asarray(rows, dtype=np.int64)
        mask_E = np.zeros(num_envs, dtype=np.bool_)
        mask_E[rows_W] = True
        return cls(rows_W, mask_E)

    @classmethod
    def within(cls, mask_E: BoolArray) -> Where:
        """Those of the mask, for columns that are over all environments already, and blank elsewhere."""
        return cls(slice(None), mask_E)

    @classmethod
    def everywhere(cls, num_envs: int) -> Where:
        return cls(slice(None), np.ones(num_envs, dtype=np.bool_))

    def __bool__(self) -> bool:
        return bool(self.mask_E.any() if isinstance(self.rows_W, slice) else len(self.rows_W))

    def put(self, info: Info, columns: Mapping[str, Any]) -> None:
        """Set `info[key]`, an array over all environments, and `info["_" + key]`, where it holds, for each column.

        This is the way of Gymnasium: a column that is a dict becomes an info of its own, and nothing is set when no
        environment is concerned. Columns must be new: they may become the caller's as they are.
        """
        if not self:
            return
        for key, column_W in columns.items():
            if isinstance(column_W, dict):
                values_E: Any = {}
                self.put(values_E, column_W)
            elif isinstance(self.rows_W, slice):
                values_E = column_W
            else:
                blank = np.empty if column_W.dtype == object else np.zeros  # an empty array of objects holds None
                values_E = blank((len(self.mask_E), *column_W.shape[1:]), dtype=column_W.dtype)
                values_E[self.rows_W] = column_W
            info[key], info[f"_{key}"] = values_E, self.mask_E.copy()

    def put_final(self, info: Info, observed_W: Observation, final: Info) -> None:
        """Set `final_obs`, one observation per environment, and `final_info`: of episodes that ended in this step."""
        if not self:
            return
        final_obs_E = np.empty(len(self.mask_E), dtype=object)
        each_W: Iterable[Any] = observed_W
        if isinstance(observed_W, dict):
            each_W = (dict(zip(observed_W, parts, strict=True)) for parts in zip(*observed_W.values(), strict=True))
        for e, observation in zip(self.rows_W.tolist(), each_W, strict=True):
            final_obs_E[e] = observation
        info["final_obs"], info["_final_obs"] = final_obs_E, self.mask_E.copy()
        info["final_info"], info["_final_info"] = final, self.mask_E.copy()


class BatchedEnv(gym.vector.VectorEnv[Observation, IntArray, npt.NDArray[Any]]):
    """E environments with Discrete actions in one object; a base class.

    Environment e has a generator of its own, seeded with `seed + e`, so that its episodes do not depend on the number
    of environments. Returned arrays are new in each call and may be kept. `action_masks()` gives all masks, bool
    `(E, n)`.

    `reset` takes an int, a list of one seed (or `None`) per environment, or `None`. Its options are what an episode can
    be pinned to (a task, a trace, a state), one for all or a sequence of one per environment, for the episodes it
    begins; and `reset_mask`, bool `(E,)`: which environments to reset.

    Autoreset modes: NEXT_STEP (default): the step behind an episode's last ignores the action and begins the next
    episode. SAME_STEP: the last step returns the next episode's first observation, and the last one as
    `info["final_obs"]` and `info["final_info"]`. DISABLED: reset ended environments with `reset_mask`.
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
        self._begun = False

    def _prepare_reset(
        self,
        seed: int | Sequence[int | None] | None,
        options: Mapping[str, Any],
        pin: str,
        index_of: Callable[[Any], int],
    ) -> tuple[BoolArray, BoolArray, IntArray]:
        """Check what `reset` was given, and seed.

        Args:
            pin: the option that pins an environment's episode.
            index_of: the number of what it names, or an error.

        Returns:
            Whom to reset, whose generators are new, and what each is pinned to (-1: nothing), all `(E,)`.

        Raises:
            ConfigError: an unknown option, a mask of another shape or type or without any environment, or not one seed
                or pin for each environment.
            ResetNeeded: the first reset of all is to leave some out.
        """
        refuse_unknown_options(options, (pin, "reset_mask"))
        chosen_E = chosen_by_mask(options, self.num_envs, self._begun)
        pinned_E = pinned_to(options, pin, self.num_envs, index_of)
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
        new_E = seed_generators(self._rngs, seed, chosen_E)
        return chosen_E, new_E, pinned_E

    def _checked_actions(self, actions: npt.ArrayLike, ended_E: BoolArray) -> IntArray:
        """The actions of a step, int64 `(E,)`.

        Raises:
            ResetNeeded: there was no reset, or, with autoreset disabled, an environment has ended.
            InvalidAction: not one action for each environment.
        """
        if not self._begun:
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


def chosen_by_mask(options: Mapping[str, Any], num_envs: int, begun: bool) -> BoolArray:
    """Which environments `options["reset_mask"]` resets; all without one. Errors as `BatchedEnv` has them."""
    if "reset_mask" not in options:
        return np.ones(num_envs, dtype=np.bool_)
    chosen_E = np.asarray(options["reset_mask"])
    if chosen_E.shape != (num_envs,) or chosen_E.dtype != np.bool_ or not chosen_E.any():
        raise ConfigError(f"reset_mask must be bool of shape ({num_envs},), with at least one True")
    if not (begun or chosen_E.all()):
        raise gym.error.ResetNeeded("no episode has begun: the first reset() takes all environments")
    return chosen_E


def pinned_to(options: Mapping[str, Any], key: str, num_envs: int, index_of: Callable[[Any], int]) -> IntArray:
    """What `options[key]` pins each environment to, int64 `(E,)`; -1 without it. Errors as `BatchedEnv` has them."""
    if key not in options:
        return np.full(num_envs, -1)
    wanted, name = options[key], key.replace("_", " ")
    if isinstance(wanted, str) or not isinstance(wanted, (Sequence, np.ndarray)):
        return np.full(num_envs, index_of(wanted))
    if len(wanted) != num_envs:
        raise ConfigError(f"{len(wanted)} {name}s for {num_envs} environments: give one for each, or a single {name}")
    return np.array([index_of(one) for one in wanted])


def seed_generators(
    rngs: list[np.random.Generator], seed: int | Sequence[int | None] | None, chosen_E: BoolArray
) -> BoolArray:
    """Put new generators, in place, where a seed is given; only in the chosen environments.

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
        if seeds[e] is not None:
            rngs[e], _ = seeding.np_random(seeds[e])
            new_E[e] = True
    return new_E
