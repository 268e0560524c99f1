"""What the vector environments that write programs share: seeds, tasks, autoreset, grading and infos of E episodes.

Step by step they return what `gymnasium.vector.SyncVectorEnv` does over single environments. What a step writes, and
what a row's actions are, the two environments say themselves.

Shape suffixes: E environments, B of them concerned, n actions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ra3gym.envs.code_batch import CodeBatch
from ra3gym.envs.code_problem import CodeProblem, Observation, refuse_unknown_options
from ra3gym.errors import ConfigError
from ra3gym.verify import Verdict

Info = dict[str, Any]
BoolArray = npt.NDArray[np.bool_]


class CodeVectorEnv(gym.vector.VectorEnv[Observation, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """E episodes of one problem in one batch; a base class.

    Environment e has a generator of its own, seeded with `seed + e`, for its tasks and its decoder: what it does
    depends on the number of environments by the rounding of a batch's arithmetic alone, which decides ties. Returned
    arrays are new in each call and may be kept.

    `reset` takes an int, a list of one seed (or `None`) per environment, or `None`. Its options are `task_id`, one for
    all or a sequence of one per environment, for the episodes it begins; and `reset_mask`, bool `(E,)`: which
    environments to reset. `action_masks()` gives all masks, bool `(E, n)`.

    An episode's program goes to the judge as soon as the episode is over; the rest of the batch writes on, and new
    prompts are read, while it is graded. Rewards belong to the step that ends an episode, so a step waits for its own
    verdicts before it returns.
    """

    def __init__(self, batch: CodeBatch, num_actions: int, mode: AutoresetMode, render_mode: str | None) -> None:
        self._batch = batch
        self.problem: CodeProblem = batch.problem
        self.num_envs = batch.num_rows
        self._mode = mode
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        self.render_mode = render_mode
        self.single_action_space = gym.spaces.Discrete(num_actions)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.single_observation_space = self.problem.observation_space(num_actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

        self._legal_En = np.ones((self.num_envs, num_actions), dtype=np.bool_)
        self._over_E = np.zeros(self.num_envs, dtype=np.bool_)
        self._verdicts: list[Verdict | None] = [None] * self.num_envs
        self._rngs: list[np.random.Generator] = []
        self._graded: dict[int, Future[list[Verdict]]] = {}
        self._begun = False

    # What a subclass says

    @abstractmethod
    def _advance(self, rows: Sequence[int], actions: Sequence[int]) -> tuple[BoolArray, BoolArray, Info]:
        """Take these actions, -1 for an illegal one: who terminated, who was truncated, and the step's own infos.

        All bool `(B,)`, or columns of B; calls `_hand_in` with each row whose episode is over.
        """

    @abstractmethod
    def _update_actions(self, rows: Sequence[int]) -> None:
        """Work out what these rows' actions are now, and set their `_legal_En`."""

    @abstractmethod
    def _current(self, rows: Sequence[int]) -> Info:
        """Infos of these rows that do not depend on a step, as columns of B, new in memory."""

    @abstractmethod
    def _show(self, row: int) -> str:
        """One row for `render`."""

    # Gymnasium's interface

    @property
    def task_ids(self) -> list[str]:
        """The ids that `reset(options={"task_id": ...})` takes."""
        return self.problem.task_ids

    @property
    def programs(self) -> list[str]:
        """What is graded of each environment: prompt and completion, without latents."""
        return [self._batch.program(e) for e in range(self.num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin episodes in all environments, or in those of `options["reset_mask"]`.

        Raises:
            ConfigError: an unknown option, or not one seed or task per environment.
            UnknownNameError: no such task.
        """
        options = options or {}
        refuse_unknown_options(options, ("task_id", "reset_mask"))
        rows = self._rows_to_reset(options)
        pinned = self._pinned(options)
        self._seed(seed, rows)
        self._graded = {}
        self._begin(rows, [self._draw(e) if (task := pinned[e]) is None else task for e in rows])
        self._begun = True
        info: Info = {}
        spread(info, self._current(rows), rows, self.num_envs)
        return self._observe(range(self.num_envs)), info

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[np.float64], BoolArray, BoolArray, Info]:
        """Take an action in each environment; illegal ones are reported in the infos, see the single environment.

        Raises:
            ResetNeeded: there was no reset, or, with autoreset disabled, an environment has ended.
            InvalidAction: not one action per environment.
        """
        E = self.num_envs
        action_E = np.asarray(actions, dtype=np.int64)
        if not self._begun:
            raise gym.error.ResetNeeded("no episode has begun: call reset() first")
        if action_E.shape != (E,):
            raise gym.error.InvalidAction(f"actions of shape {action_E.shape}: give one for each of {E} environments")
        if self._mode is AutoresetMode.DISABLED and self._over_E.any():
            raise gym.error.ResetNeeded(
                f"environment {int(self._over_E.argmax())} has ended: reset it with options={{'reset_mask': ...}}"
            )
        anew, rows = np.flatnonzero(self._over_E).tolist(), np.flatnonzero(~self._over_E).tolist()
        terminated_E, truncated_E = np.zeros(E, dtype=np.bool_), np.zeros(E, dtype=np.bool_)
        stepped: Info = {}
        if rows:
            terminated_E[rows], truncated_E[rows], stepped = self._advance(rows, self._legal_or_minus_1(rows, action_E))
            self._update_actions(rows)
        ended_E = terminated_E | truncated_E
        ended = np.flatnonzero(ended_E).tolist()
        info: Info = {}
        if self._mode is AutoresetMode.SAME_STEP:
            final = self._final(ended, rows, stepped) if ended else {}
            final_obs_E = self._final_observations(ended)
            self._begin(ended, [self._draw(e) for e in ended])
            reward_E = self._rewards(ended, final)
            if ended:
                info["final_obs"], info["_final_obs"] = final_obs_E, ended_E.copy()
                info["final_info"], info["_final_info"] = final, ended_E.copy()
            self._over_E[:] = False
            rows, stepped = _rows_of(rows, stepped, ~ended_E)
        else:
            self._begin(anew, [self._draw(e) for e in anew])
            reward_E = self._rewards(ended, info)
            self._over_E = ended_E.copy()
        spread(info, stepped, rows, E)
        spread(info, self._current(range(E)), range(E), E)
        return self._observe(range(E)), reward_E, terminated_E, truncated_E, info

    def action_masks(self) -> BoolArray:
        """bool `(E, n)`: which actions are legal now."""
        return self._legal_En.copy()

    def render(self) -> tuple[str, ...] | None:
        """The programs so far, for `render_mode="ansi"`."""
        return None if self.render_mode is None else tuple(self._show(e) for e in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """End the judge's processes."""
        self.problem.close()

    # Tasks and seeds

    def _begin(self, rows: Sequence[int], tasks: Sequence[int]) -> None:
        if rows:
            self._batch.begin(rows, tasks)
            self._over_E[list(rows)] = False
            for e in rows:
                self._verdicts[e] = None
            self._update_actions(rows)

    def _draw(self, e: int) -> int:
        return self.problem.draw_task(self._rngs[e])

    def _seed(self, seed: int | Sequence[int | None] | None, rows: Sequence[int]) -> None:
        """New generators where a seed is given, or where there was none; only in these environments."""
        if seed is None or isinstance(seed, (int, np.integer)):
            super().reset(seed=None if seed is None else int(seed))
            seeds: list[int | None] = [None if seed is None else int(seed) + e for e in range(self.num_envs)]
        else:
            seeds = [None if one is None else int(one) for one in seed]
        if len(seeds) != self.num_envs:
            raise ConfigError(
                f"{len(seeds)} seeds for {self.num_envs} environments: give one for each, or a single int"
            )
        if not self._rngs:
            self._rngs = [seeding.np_random(one)[0] for one in seeds]
            return
        for e in rows:
            if seeds[e] is not None:
                self._rngs[e] = seeding.np_random(seeds[e])[0]

    def _pinned(self, options: Mapping[str, Any]) -> list[int | None]:
        """The task that each environment is to begin; `None` for a random one."""
        if "task_id" not in options:
            return [None] * self.num_envs
        wanted = options["task_id"]
        if isinstance(wanted, str) or not isinstance(wanted, (Sequence, np.ndarray)):
            return [self.problem.task_index(wanted)] * self.num_envs
        if len(wanted) != self.num_envs:
            raise ConfigError(f"{len(wanted)} task ids for {self.num_envs} environments: give one for each, or one id")
        return [self.problem.task_index(one) for one in wanted]

    def _rows_to_reset(self, options: Mapping[str, Any]) -> list[int]:
        if "reset_mask" not in options:
            return list(range(self.num_envs))
        chosen_E = np.asarray(options["reset_mask"])
        if chosen_E.shape != (self.num_envs,) or chosen_E.dtype != np.bool_ or not chosen_E.any():
            raise ConfigError(f"reset_mask must be bool of shape ({self.num_envs},), with at least one True")
        if not (self._begun or chosen_E.all()):
            raise gym.error.ResetNeeded("no episode has begun: the first reset() takes all environments")
        rows: list[int] = np.flatnonzero(chosen_E).tolist()
        return rows

    def _legal_or_minus_1(self, rows: Sequence[int], action_E: npt.NDArray[np.int64]) -> list[int]:
        n = self._legal_En.shape[1]
        return [
            int(action_E[e]) if 0 <= action_E[e] < n and self._legal_En[e, action_E[e]] else -1  # masked, or no action
            for e in rows
        ]

    # Grading

    def _hand_in(self, row: int) -> None:
        """Give a finished program to the judge, without waiting."""
        self._graded[row] = self.problem.submit(int(self._batch.task_E[row]), self._batch.written(row))

    def _rewards(self, ended: Sequence[int], info: Info) -> npt.NDArray[np.float64]:
        """Wait for the verdicts of the episodes that end in this step, and add them to `info`."""
        reward_E = np.zeros(self.num_envs)
        futures, self._graded = self._graded, {}
        verdict_B = np.empty(len(ended), dtype=object)
        for i, e in enumerate(ended):
            (verdict_B[i],) = futures[e].result()
            reward_E[e] = self.problem.reward(verdict_B[i])
            if self._mode is not AutoresetMode.SAME_STEP:
                self._verdicts[e] = verdict_B[i]
        if ended:
            spread(info, {"verdict": verdict_B}, ended, self.num_envs)
        return reward_E

    # Returned data

    def _observe(self, rows: Sequence[int]) -> Observation:
        """The observations of these rows, `(B, ...)`."""
        if self.problem.observation == "tokens":
            return self._batch.padded_BL(rows)
        hidden_BD = self._batch.hidden_BD(rows)
        if self.problem.observation == "hidden":
            return hidden_BD
        return {"obs": hidden_BD, "mask": self._legal_En[list(rows)].astype(np.int8)}

    def _final_observations(self, ended: Sequence[int]) -> npt.NDArray[Any]:
        final_E = np.full(self.num_envs, None, dtype=object)
        if ended:
            found = self._observe(ended)
            for i, e in enumerate(ended):
                final_E[e] = {key: part[i] for key, part in found.items()} if isinstance(found, dict) else found[i]
        return final_E

    def _final(self, ended: Sequence[int], rows: Sequence[int], stepped: Info) -> Info:
        """The infos of episodes that end in this step, ahead of the next ones' begin."""
        final: Info = {}
        ended_E = np.zeros(self.num_envs, dtype=np.bool_)
        ended_E[list(ended)] = True
        spread(final, _rows_of(rows, stepped, ended_E)[1], ended, self.num_envs)
        spread(final, self._current(ended), ended, self.num_envs)
        return final


def check_vector(num_envs: int, autoreset_mode: str | AutoresetMode) -> AutoresetMode:
    """The mode; `ConfigError` for an unknown one, or for less than one environment."""
    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs} must be at least 1")
    try:
        return AutoresetMode(autoreset_mode)
    except ValueError:
        known = ", ".join(repr(one.value) for one in AutoresetMode)
        raise ConfigError(f"autoreset_mode={autoreset_mode!r} is not supported; use one of {known}") from None


def spread(info: Info, columns: Info, rows: Sequence[int], num_envs: int) -> None:
    """Add columns of B rows to `info` as Gymnasium does: arrays over E, `"_" + key` says where they hold.

    Columns must be new: they may become the caller's as they are.
    """
    if not rows:
        return
    for key, column_B in columns.items():
        mask_E = np.zeros(num_envs, dtype=np.bool_)
        mask_E[list(rows)] = True
        if isinstance(column_B, dict):
            values_E: Any = {}
            spread(values_E, column_B, rows, num_envs)
        elif len(rows) == num_envs:
            values_E = column_B
        else:
            nothing = None if column_B.dtype == object else 0
            values_E = np.full((num_envs, *column_B.shape[1:]), nothing, dtype=column_B.dtype)
            values_E[list(rows)] = column_B
        info[key], info[f"_{key}"] = values_E, mask_E


def _rows_of(rows: Sequence[int], columns: Info, wanted_E: BoolArray) -> tuple[list[int], Info]:
    """Those of `rows` that are wanted, and their part of the columns."""
    kept = [i for i, e in enumerate(rows) if wanted_E[e]]

    def part(column: Any) -> Any:
        return {key: part(value) for key, value in column.items()} if isinstance(column, dict) else column[kept]

    return [rows[i] for i in kept], part(columns)
