"""The single and the vector form of an environment that writes programs: seeds, tasks, autoreset and infos.

Both arrange the rows of one `CodeBatch`, which holds the step itself; the single form is row 0 of a batch of one. Step
by step the vector form returns what `gymnasium.vector.SyncVectorEnv` does over single ones.

Shape letters: see CONTRIBUTING.md (E environments, A actions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from ra3gym.envs.batched_episodes import BatchedEnv, BoolArray, Info, Selection, first_row, select_columns
from ra3gym.envs.code.batch import CodeBatch
from ra3gym.envs.code.problem import CodeConfig, CodeProblem, Observation, copy_sharing_the_model
from ra3gym.envs.keywords import RENDER_MODES, check_vector, config_from
from ra3gym.tasks import CodeTask
from ra3gym.verify import Verdict


class CodeEnv(gym.Env[Observation, np.int64]):
    """One episode at a time; a base class. Subclasses name their configuration and their batch."""

    config_type: ClassVar[type[CodeConfig]]
    batch_type: ClassVar[type[CodeBatch[Any]]]
    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.config = config_from(self.config_type, self, args, keywords)
        self._batch = self.batch_type(self.config, 1)
        self.problem: CodeProblem = self._batch.problem
        self.render_mode = self.config.render_mode
        self.action_space = gym.spaces.Discrete(self._batch.num_actions)
        self.observation_space = self.problem.observation_space(self._batch.num_actions)
        self.verdict: Verdict | None = None
        self._done = True

    @property
    def task(self) -> CodeTask:
        """The task of this episode."""
        return self.problem.tasks[int(self._batch.task_E[0])]

    @property
    def task_ids(self) -> list[str]:
        """The ids that `reset(options={"task_id": ...})` takes."""
        return self.problem.task_ids

    @property
    def completion(self) -> str:
        """The text written so far, latents included, without the end token."""
        return self._batch.completion(0)

    @property
    def program(self) -> str:
        """What is graded: the prompt and the completion without latents."""
        return self._batch.program(0)

    @property
    def decisions(self) -> int:
        """How many actions this episode has taken."""
        return int(self._batch.decisions_E[0])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a random task, or that of `options={"task_id": ...}`; `UnknownNameError` if there is no such task."""
        super().reset(seed=seed)
        self._batch.begin([0], [self.problem.pick(options or {}, self.np_random)], [self.np_random])
        self.verdict = None
        self._done = False
        return self._observe(), first_row(self._batch.infos([0]))

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take an action. An illegal one is reported in the info, see the class.

        Raises:
            ResetNeeded: the episode has ended, or none has begun.
        """
        if self._done:
            raise gym.error.ResetNeeded("this episode has ended, or none has begun: call reset() first")
        step = self._batch.step([0], [int(action)], [self.np_random])
        terminated, truncated = bool(step.terminated_B[0]), bool(step.truncated_B[0])
        reward, info = 0.0, first_row(self._batch.infos([0]) | step.infos)
        if terminated or truncated:
            self._done = True
            reward_B, graded = self._batch.grades([0])
            reward = float(reward_B[0])
            info |= first_row(graded)
            self.verdict = info["verdict"]
        return self._observe(), reward, terminated, truncated, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which actions are legal now, bool `(A,)`, as sb3-contrib asks for it."""
        legal_A: npt.NDArray[np.bool_] = self._batch.legal_EA[0].copy()
        return legal_A

    def render(self) -> Any:
        """Return the program so far under a line of status, segments in the colors of their latents.

        Text for "ansi", with escape codes unless the environment variable `NO_COLOR` is set; a uint8 array of height,
        width and 3 colors for "rgb_array".
        """
        return None if self.render_mode is None else self._batch.render(0, self.verdict, self.render_mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an independent copy in mid-episode, as tree search needs it; it shares the model."""
        return copy_sharing_the_model(self, self.problem, memo)

    def close(self) -> None:
        """End the judge's processes; safe to call twice."""
        self.problem.close()

    def _observe(self) -> Observation:
        observed = self._batch.observe([0])
        return {key: values[0] for key, values in observed.items()} if isinstance(observed, dict) else observed[0]


class CodeVectorEnv(BatchedEnv):
    """E episodes of one problem in one batch; a base class.

    Step by step it returns what `gymnasium.vector.SyncVectorEnv` does over single environments: observations, rewards,
    flags and infos. See `BatchedEnv` for seeds, options of `reset` (here `task_id` and `reset_mask`) and autoreset
    modes. An environment's generator serves its tasks and its decoder. Results depend on the number of environments
    only through the rounding of a batch's arithmetic, which can decide ties.

    An episode's program goes to the judge as soon as the episode ends. While it is graded, the rest of the batch
    continues and new prompts are read. Rewards belong to the step that ends an episode, so a step waits for the
    verdicts of its own episodes before it returns.

    Args:
        *args: the first fields of the configuration, which is the single environment's.
        num_envs: E, at least 1.
        autoreset_mode: see `BatchedEnv`.
        **keywords: the other fields of the configuration.

    Raises:
        ConfigError, ModelError, UnknownNameError: as the single environment; `ConfigError` also for a number of
            environments below 1 or an unknown mode.
    """

    config_type: ClassVar[type[CodeConfig]]
    batch_type: ClassVar[type[CodeBatch[Any]]]
    metadata: dict[str, Any] = {**CodeEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        *args: Any,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **keywords: Any,
    ) -> None:
        mode = check_vector(num_envs, autoreset_mode)
        self.config = config_from(self.config_type, self, args, keywords)
        self._batch = self.batch_type(self.config, num_envs)
        self.problem: CodeProblem = self._batch.problem
        super().__init__(
            num_envs,
            gym.spaces.Discrete(self._batch.num_actions),
            self.problem.observation_space(self._batch.num_actions),
            mode=mode,
            render_mode=self.config.render_mode,
        )
        self._ended_E = np.zeros(num_envs, dtype=np.bool_)
        self._verdicts: list[Verdict | None] = [None] * num_envs

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
        self._batch.forget_submissions()
        self._begin(rows, pinned_E)
        self._has_begun = True
        info: Info = {}
        Selection.of_rows(rows, self.num_envs).add_to(info, self._batch.infos(rows))
        return self._batch.observe(range(self.num_envs)), info

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[np.float64], BoolArray, BoolArray, Info]:
        """Take an action in each environment. Illegal ones are reported in the infos, see the single environment.

        Raises:
            ResetNeeded: there was no reset, or, with autoreset disabled, an environment has ended.
            InvalidAction: not one action per environment.
        """
        E, everyone = self.num_envs, range(self.num_envs)
        action_E = self._checked_actions(actions, self._ended_E)
        waiting: list[int] = np.flatnonzero(self._ended_E).tolist()
        rows: list[int] = np.flatnonzero(~self._ended_E).tolist()
        terminated_E, truncated_E = np.zeros(E, dtype=np.bool_), np.zeros(E, dtype=np.bool_)
        step_infos: Info = {}
        if rows:
            step = self._batch.step(rows, action_E[rows].tolist(), self._rngs)
            terminated_E[rows], truncated_E[rows], step_infos = step.terminated_B, step.truncated_B, step.infos
        ended_E = terminated_E | truncated_E
        ended: list[int] = np.flatnonzero(ended_E).tolist()
        info: Info = {}
        reward_E = np.zeros(E)
        if self._mode is AutoresetMode.SAME_STEP:
            if ended:
                final, final_obs = self._final_info(ended, rows, step_infos), self._batch.observe(ended)
                self._begin(ended)
                reward_E[ended] = self._add_grades(ended, final)
                Selection.of_rows(ended, E).add_final_to(info, final_obs, final)
                rows, step_infos = _without(ended_E, rows, step_infos)
        else:
            self._begin(waiting)
            reward_E[ended] = self._add_grades(ended, info)
            for e in ended:
                self._verdicts[e] = info["verdict"][e]
            self._ended_E = ended_E.copy()
        (Selection.of_rows(rows, E) if len(rows) < E else Selection.of_all(E)).add_to(info, step_infos)
        Selection.of_all(E).add_to(info, self._batch.infos(everyone))
        return self._batch.observe(everyone), reward_E, terminated_E, truncated_E, info

    def action_masks(self) -> BoolArray:
        """Return which actions are legal now, bool `(E, A)`."""
        return self._batch.legal_EA.copy()

    def render(self) -> tuple[Any, ...] | None:
        """Return what the single environments render, one for each."""
        if self.render_mode is None:
            return None
        return tuple(self._batch.render(e, verdict, self.render_mode) for e, verdict in enumerate(self._verdicts))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an independent copy in mid-episode; it shares the model."""
        return copy_sharing_the_model(self, self.problem, memo)

    def close_extras(self, **kwargs: Any) -> None:
        """End the judge's processes."""
        self.problem.close()

    def _begin(self, rows: Sequence[int], pinned_E: npt.NDArray[np.int64] | None = None) -> None:
        """Begin the pinned tasks in these rows, or random ones where none is pinned."""
        if not rows:
            return
        pins = [-1 if pinned_E is None else int(pinned_E[e]) for e in rows]
        tasks = [self.problem.draw_task(self._rngs[e]) if pin < 0 else pin for e, pin in zip(rows, pins, strict=True)]
        self._batch.begin(rows, tasks, self._rngs)
        self._ended_E[list(rows)] = False
        for e in rows:
            self._verdicts[e] = None

    def _final_info(self, ended: Sequence[int], rows: Sequence[int], step_infos: Info) -> Info:
        """Return the infos of episodes that ended in this step, as they are before the next ones begin."""
        final: Info = {}
        selection = Selection.of_rows(ended, self.num_envs)
        _, own_infos = _without(~selection.mask_E, rows, step_infos)
        selection.add_to(final, own_infos | self._batch.infos(ended))
        return final

    def _add_grades(self, ended: Sequence[int], info: Info) -> npt.NDArray[np.float64]:
        """Wait for the grades of these episodes, add them to `info`, and return the rewards `(B,)`."""
        reward_B, graded = self._batch.grades(ended)
        Selection.of_rows(ended, self.num_envs).add_to(info, graded)
        return reward_B


def _without(left_out_E: BoolArray, rows: Sequence[int], columns: Info) -> tuple[list[int], Info]:
    """Return the rows that are not left out, and their part of the columns, which are over all of `rows`."""
    kept = [i for i, e in enumerate(rows) if not left_out_E[e]]
    return [rows[i] for i in kept], select_columns(columns, kept)
