"""What the single environments that write programs share: tasks, episodes, grading, masks and rendering.

What a step writes, and what the actions are, each environment says itself; `CodeVectorEnv` is the same for many
at once.

Shape suffixes: n actions, D hidden size, L tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.envs.code.batch import CodeBatch
from ra3gym.envs.code.problem import Observation
from ra3gym.tasks import CodeTask
from ra3gym.verify import Verdict


class CodeEnv(gym.Env[Observation, np.int64]):
    """One episode at a time of a problem, the only row of a batch; a base class."""

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(self, batch: CodeBatch, num_actions: int, render_mode: str | None) -> None:
        self._batch = batch
        self.problem = batch.problem
        self.render_mode = render_mode
        self.action_space = gym.spaces.Discrete(num_actions)
        self.observation_space = self.problem.observation_space(num_actions)
        self.verdict: Verdict | None = None
        self._legal_n: npt.NDArray[np.bool_] = np.ones(num_actions, dtype=np.bool_)
        self._done = True

    # What a subclass says

    @abstractmethod
    def _advance(self, action: int) -> tuple[bool, bool, dict[str, Any]]:
        """Take this action, -1 for an illegal one: terminated, truncated, and the step's own infos."""

    @abstractmethod
    def _update_actions(self) -> None:
        """Work out what the actions are now, and set `_legal_n`."""

    @abstractmethod
    def _actions(self) -> dict[str, Any]:
        """What `info` says of the actions, beside the mask; new in memory."""

    # Gymnasium's interface

    @property
    def max_new_tokens(self) -> int:
        """The budget of an episode in tokens."""
        return self.problem.max_new_tokens

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

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a task: a random one, or that of `options={"task_id": ...}`; `UnknownNameError` if there is none."""
        super().reset(seed=seed)
        self._batch.begin([0], [self.problem.pick(options or {}, self.np_random)])
        self.verdict = None
        self._done = False
        self._update_actions()
        return self._observe(), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take an action; an illegal one is reported, see the class. `gymnasium.error.ResetNeeded` when no episode is
        under way."""
        if self._done:
            raise gym.error.ResetNeeded("this episode has ended, or none has begun: call reset() first")
        index = int(action)
        legal = 0 <= index < len(self._legal_n) and bool(self._legal_n[index])
        terminated, truncated, stepped = self._advance(index if legal else -1)
        self._update_actions()
        reward = 0.0
        info = self._info() | stepped
        if terminated or truncated:
            self._done = True
            self.verdict, terms = self._batch.submit(0).outcome()
            reward = sum(terms.values())
            info |= {"verdict": self.verdict, "reward_terms": terms}
        return self._observe(), reward, terminated, truncated, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """bool `(n,)`: which actions are legal now; the dialect of sb3-contrib."""
        return self._legal_n.copy()

    def render(self) -> Any:
        """The program so far under a line of status, segments in the colours of their latents.

        Text for "ansi", with escape codes unless the environment variable `NO_COLOR` is set; uint8 `(H, W, 3)` for
        "rgb_array".
        """
        if self.render_mode == "rgb_array":
            return self._batch.frame(0, self.verdict)
        return None if self.render_mode is None else self._batch.show(0, self.verdict)

    def close(self) -> None:
        """End the judge's processes; safe to call twice."""
        self.problem.close()

    def _observe(self) -> Observation:
        if self.problem.observation == "tokens":
            tokens_L: Observation = self._batch.padded_BL([0])[0]
            return tokens_L
        hidden_D: npt.NDArray[np.float32] = self._batch.hidden_BD([0])[0]
        if self.problem.observation == "hidden":
            return hidden_D
        return {"obs": hidden_D, "mask": self._legal_n.astype(np.int8)}

    def _info(self) -> dict[str, Any]:
        return {
            "task_id": self.task.task_id,
            **self._actions(),
            "action_mask": self._legal_n.astype(np.int8),
        }
