"""`ra3gym/TokenCode-v0`: write a Python program one token at a time; the reward is its share of hidden tests passed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.envs.code_batch import CodeBatch
from ra3gym.envs.code_problem import CodeProblem, Observation, ObservationKind, RewardKind
from ra3gym.envs.options import check_choice, check_render_mode
from ra3gym.errors import ConfigError
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask
from ra3gym.verify import Verdict

ActionSpace = Literal["topk", "full"]


class TokenCodeEnv(gym.Env[Observation, np.int64]):
    """Solve a `CodeTask` token by token.

    **Actions.** `action_space="topk"` (default): `Discrete(k)`, an index into the model's `top_k` likeliest tokens
    here, in falling order, listed in `info["candidates"]`. `"full"`: `Discrete(V)`, a token id. Candidates are always
    legal; in the full vocabulary, ids without a token and special tokens other than end, latents and pause are masked.
    The mask comes as `info["action_mask"]` (int8), as `action_masks()` (bool) and in the `"dict"` observation.
    *An illegal action* (masked, or out of range) writes nothing, uses up one token of the budget, and is reported as
    `info["illegal_action"]`.

    **Observations.** `"hidden"` (default): float32 `(D,)`, the model's last hidden state. `"tokens"`: int64 `(L,)`,
    ids of prompt and program, padded on the right; L is the longest prompt plus `max_new_tokens`. `"dict"`: a flat
    Dict of `"obs"`, the hidden state, and `"mask"`, int8 `(n,)`.

    **Episode.** `reset` draws a task with `self.np_random`; `reset(options={"task_id": ...})` picks one. An end token
    terminates; `max_new_tokens` actions without one truncate. *Either way the program is graded*: a cut-off program
    can be right, or partly right. Latent and pause tokens are stripped from it first.

    **Reward.** 0 until the end, then the fraction of hidden tests passed (`reward="fraction"`) or 1 if all pass and 0
    otherwise (`"all"`).

    **Info.** Always `task_id`, `candidates` (int64 token id per action), `logprobs` (float32, nats, per action, under
    the model's whole vocabulary) and `action_mask`. After a step also `duration` (`{"tokens": 1}`) and
    `illegal_action`; at the end also `verdict`.

    Args:
        model: "embedded" (the checkpoint in the package), a Hugging Face folder or hub id; or a `LoadedModel` when the
            class is used directly.
        tasks: a name for `ra3gym.tasks.load_tasks`; or a sequence of tasks when the class is used directly.
        split: the part of them, where `tasks` is a name. `None` takes the split "rl" of the embedded domain, whose
            compositions neither training nor evaluation has, and all of any other set.
        action_space: see above.
        top_k: candidates per step; 8 to 64 keeps nearly all the mass of a trained model. Lowered to the number of
            legal tokens if there are fewer.
        observation: see above.
        max_new_tokens: the budget of an episode in tokens.
        judge_workers: processes that grade; an environment grades one program at a time, so 1 suffices.
        reward: see above.
        device: where a model given by name is loaded.
        dtype: its precision, as `ra3gym.lm.load` names it.
        render_mode: `None` or "ansi".

    Raises:
        ConfigError: an option outside its choices, an empty set of tasks, or a prompt too long for the model.
        ModelError: the model cannot be loaded.
        UnknownNameError: no such set of tasks; in `reset`, no such task.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel = "embedded",
        tasks: str | Sequence[CodeTask] = "idioms",
        split: str | None = None,
        *,
        action_space: ActionSpace = "topk",
        top_k: int = 32,
        observation: ObservationKind = "hidden",
        max_new_tokens: int = 192,
        judge_workers: int = 1,
        reward: RewardKind = "fraction",
        device: str = "cpu",
        dtype: str = "float32",
        render_mode: str | None = None,
    ) -> None:
        check_choice("action_space", action_space, ActionSpace)
        check_render_mode(render_mode, self.metadata["render_modes"])
        if top_k < 1:
            raise ConfigError(f"top_k={top_k} must be at least 1")
        self.render_mode = render_mode
        self.problem = CodeProblem(
            model,
            tasks,
            split,
            max_new_tokens=max_new_tokens,
            observation=observation,
            reward=reward,
            judge_workers=judge_workers,
            device=device,
            dtype=dtype,
        )
        self._writable_V = self.problem.writable_V
        self._top_k = min(top_k, int(self._writable_V.sum())) if action_space == "topk" else None
        num_actions = self._top_k or self.problem.vocab_size
        self.action_space = gym.spaces.Discrete(num_actions)
        self.observation_space = self.problem.observation_space(num_actions)

        self.verdict: Verdict | None = None
        self._batch = CodeBatch(self.problem, 1)
        self._done = True

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
        """Write the action's token; `gymnasium.error.ResetNeeded` when no episode is under way."""
        if self._done:
            raise gym.error.ResetNeeded("this episode has ended, or none has begun: call reset() first")
        self._batch.spent_E[0] += 1
        index = int(action)
        legal = 0 <= index < len(self._legal) and bool(self._legal[index])
        if legal:
            self._batch.stream.write([0], [int(self._candidates[index])])
            self._update_actions()
        terminated = legal and self._batch.written(0)[-1] in self.problem.end_ids
        truncated = not terminated and bool(self._batch.spent_E[0] >= self.max_new_tokens)
        reward = 0.0
        info = self._info() | {"duration": {"tokens": 1}, "illegal_action": not legal}
        if terminated or truncated:
            self._done = True
            (self.verdict,) = self.problem.submit(int(self._batch.task_E[0]), self._batch.written(0)).result()
            reward = self.problem.reward(self.verdict)
            info["verdict"] = self.verdict
        return self._observe(), reward, terminated, truncated, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """bool `(n,)`: which actions are legal now; the dialect of sb3-contrib."""
        return self._legal.copy()

    def render(self) -> str | None:
        """The program so far under a line of status, for `render_mode="ansi"`."""
        if self.render_mode is None:
            return None
        return show(self._batch, 0, self.verdict)

    def close(self) -> None:
        """End the judge's processes; safe to call twice."""
        self.problem.close()

    def _update_actions(self) -> None:
        """What each action would write now, its log-probability, and whether it is legal."""
        logp_V = self._batch.stream.logits_EV[0].float().log_softmax(-1).cpu()
        if self._top_k is None:
            self._candidates = np.arange(self.problem.vocab_size)
            self._logprobs = logp_V.numpy()
            self._legal = self._writable_V.numpy()
        else:
            top = logp_V.masked_fill(~self._writable_V, -float("inf")).topk(self._top_k)
            self._candidates, self._logprobs = top.indices.numpy(), top.values.numpy()
            self._legal = np.ones(self._top_k, dtype=np.bool_)

    def _observe(self) -> Observation:
        if self.problem.observation == "tokens":
            tokens_L: Observation = self._batch.padded_BL([0])[0]
            return tokens_L
        hidden_D: npt.NDArray[np.float32] = self._batch.hidden_BD([0])[0]
        if self.problem.observation == "hidden":
            return hidden_D
        return {"obs": hidden_D, "mask": self._legal.astype(np.int8)}

    def _info(self) -> dict[str, Any]:
        return {
            "task_id": self.task.task_id,
            "candidates": self._candidates.copy(),
            "logprobs": self._logprobs.copy(),
            "action_mask": self._legal.astype(np.int8),
        }


def show(batch: CodeBatch, row: int, verdict: Verdict | None) -> str:
    """A row's program under a line of status."""
    status = batch.problem.status(int(batch.task_E[row]), str(batch.spent_E[row]), verdict)
    return f"{status}\n{batch.program(row)}\n"
