"""What the vector environments that write programs share: seeds, tasks, autoreset, grading and infos of E episodes.

Step by step they return what `gymnasium.vector.SyncVectorEnv` does over single environments. What a step writes, and
what a row's actions are, each environment says itself.

Shape suffixes: E environments, B of them concerned, n actions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from ra3gym.envs.batched_episodes import BatchedEnv, BoolArray, Info, Where
from ra3gym.envs.code.batch import CodeBatch
from ra3gym.envs.code.problem import CodeProblem, Graded, Observation
from ra3gym.verify import Verdict


class CodeVectorEnv(BatchedEnv):
    """E episodes of one problem in one batch; a base class.

    See `BatchedEnv` for seeds, options of `reset` (here `task_id` and `reset_mask`) and autoreset modes. An
    environment's generator serves its tasks and its decoder: what it does depends on the number of environments by the
    rounding of a batch's arithmetic alone, which decides ties.

    An episode's program goes to the judge as soon as the episode is over; the rest of the batch writes on, and new
    prompts are read, while it is graded. Rewards belong to the step that ends an episode, so a step waits for its own
    verdicts before it returns.
    """

    def __init__(self, batch: CodeBatch, num_actions: int, mode: AutoresetMode, render_mode: str | None) -> None:
        self._batch = batch
        self.problem: CodeProblem = batch.problem
        super().__init__(
            batch.num_rows,
            gym.spaces.Discrete(num_actions),
            self.problem.observation_space(num_actions),
            mode=mode,
            render_mode=render_mode,
        )
        self._legal_En = np.ones((self.num_envs, num_actions), dtype=np.bool_)
        self._over_E = np.zeros(self.num_envs, dtype=np.bool_)
        self._verdicts: list[Verdict | None] = [None] * self.num_envs
        self._graded: dict[int, Graded] = {}
        self._task_ids = np.array([task.task_id for task in self.problem.tasks], dtype=object)

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
    def _actions(self, rows: Sequence[int]) -> Info:
        """What infos say of these rows' actions, beside the mask, as columns of B, new in memory."""

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
        chosen_E, _, pinned_E = self._prepare_reset(seed, options or {}, "task_id", self.problem.task_index)
        rows: list[int] = np.flatnonzero(chosen_E).tolist()
        self._graded = {}
        self._begin(rows, [self._draw(e) if pinned_E[e] < 0 else int(pinned_E[e]) for e in rows])
        self._begun = True
        info: Info = {}
        Where.at(rows, self.num_envs).put(info, self._current(rows))
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
        action_E = self._checked_actions(actions, self._over_E)
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
            where, final = Where.at(ended, E), self._final(ended, rows, stepped) if ended else {}
            final_obs = self._observe(ended) if ended else None
            self._begin(ended, [self._draw(e) for e in ended])
            reward_E = self._rewards(ended, final)
            where.put_final(info, final_obs, final)
            self._over_E[:] = False
            if ended:
                rows, stepped = _rows_of(rows, stepped, ~ended_E)
        else:
            self._begin(anew, [self._draw(e) for e in anew])
            reward_E = self._rewards(ended, info)
            self._over_E = ended_E.copy()
        (Where.at(rows, E) if len(rows) < E else Where.everywhere(E)).put(info, stepped)
        Where.everywhere(E).put(info, self._current(range(E)))
        return self._observe(range(E)), reward_E, terminated_E, truncated_E, info

    def action_masks(self) -> BoolArray:
        """bool `(E, n)`: which actions are legal now."""
        return self._legal_En.copy()

    def render(self) -> tuple[Any, ...] | None:
        """What the single environments render, one for each."""
        if self.render_mode is None:
            return None
        show = self._batch.frame if self.render_mode == "rgb_array" else self._batch.show
        return tuple(show(e, verdict) for e, verdict in enumerate(self._verdicts))

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

    def _legal_or_minus_1(self, rows: Sequence[int], action_E: npt.NDArray[np.int64]) -> list[int]:
        at = list(rows)
        action_B, n = action_E[at], self._legal_En.shape[1]
        known_B = (action_B >= 0) & (action_B < n)
        legal_B = known_B & self._legal_En[at, np.where(known_B, action_B, 0)]
        actions: list[int] = np.where(legal_B, action_B, -1).tolist()
        return actions

    # Grading

    def _hand_in(self, row: int) -> None:
        """Give a finished program to the judge, without waiting."""
        self._graded[row] = self._batch.submit(row)

    def _rewards(self, ended: Sequence[int], info: Info) -> npt.NDArray[np.float64]:
        """Wait for the verdicts of the episodes that end in this step, and add them to `info`."""
        reward_E = np.zeros(self.num_envs)
        graded, self._graded = self._graded, {}
        verdict_B = np.empty(len(ended), dtype=object)
        terms_B = []
        for i, e in enumerate(ended):
            verdict_B[i], terms = graded[e].outcome()
            reward_E[e] = sum(terms.values())
            terms_B.append(terms)
            if self._mode is not AutoresetMode.SAME_STEP:
                self._verdicts[e] = verdict_B[i]
        columns = {term: np.array([terms[term] for terms in terms_B]) for term in (terms_B[0] if terms_B else ())}
        Where.at(ended, self.num_envs).put(info, {"verdict": verdict_B, "reward_terms": columns})
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

    def _current(self, rows: Sequence[int]) -> Info:
        """Infos of these rows that do not depend on a step, as columns of B, new in memory."""
        at = list(rows)
        return {
            "task_id": self._task_ids[self._batch.task_E[at]],
            **self._actions(rows),
            "action_mask": self._legal_En[at].astype(np.int8),
        }

    def _final(self, ended: Sequence[int], rows: Sequence[int], stepped: Info) -> Info:
        """The infos of episodes that end in this step, ahead of the next ones' begin."""
        final: Info = {}
        where = Where.at(ended, self.num_envs)
        where.put(final, _rows_of(rows, stepped, where.mask_E)[1] | self._current(ended))
        return final


def _rows_of(rows: Sequence[int], columns: Info, wanted_E: BoolArray) -> tuple[list[int], Info]:
    """Those of `rows` that are wanted, and their part of the columns."""
    kept = [i for i, e in enumerate(rows) if wanted_E[e]]

    def part(column: Any) -> Any:
        return {key: part(value) for key, value in column.items()} if isinstance(column, dict) else column[kept]

    return [rows[i] for i in kept], part(columns)
