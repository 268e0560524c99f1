"""`ra3gym/LatentCode-v0`: write a Python program one latent at a time; a frozen decoder turns each into lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ra3gym.envs.code_batch import DecoderKind, LatentBatch, Segment, SegmentOptions
from ra3gym.envs.code_problem import CodeProblem, Observation, ObservationKind, RewardKind
from ra3gym.envs.options import check_render_mode
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask
from ra3gym.verify import Verdict


class LatentCodeEnv(gym.Env[Observation, np.int64]):
    """Solve a `CodeTask` latent by latent: `TokenCodeEnv`'s tasks, judge and reward, in far fewer decisions.

    A step appends the token of one latent; then the model, frozen, writes until it asks for the next one: until its own
    next token would be a latent. That token is not written: the choice is the agent's.

    **Actions.** `Discrete(K)`, the latents that the tokenizer knows. All are legal unless `top_k` or `min_prob` prunes
    them. The mask comes as `info["action_mask"]` (int8), as `action_masks()` (bool) and in the `"dict"` observation.
    *An illegal action* (masked, or out of range) writes nothing, uses up one decision and one token of the budget, and
    is reported as `info["illegal_action"]`.

    **Observations.** As in `TokenCodeEnv`, at the point where a latent is due; the first is behind the prompt.
    `"hidden"` (default): float32 `(D,)`, the model's last hidden state. `"tokens"`: int64 `(L,)`, ids of prompt and
    program, padded on the right. `"dict"`: a flat Dict of `"obs"`, the hidden state, and `"mask"`, int8 `(K,)`.

    **Episode.** `reset` draws a task with `self.np_random`; `reset(options={"task_id": ...})` picks one. An end token
    terminates; `max_new_tokens` (latents count) or `max_decisions` truncate. *Either way the program is graded*, with
    the latents stripped.

    **Reward.** 0 until the end, then the fraction of hidden tests passed (`reward="fraction"`) or 1 if all pass and 0
    otherwise (`"all"`).

    **Info.** Always `task_id`; `logprobs` (float32 `(K,)`, nats), the model's own log-probabilities over latents given
    that one comes; and `action_mask`. After a step also `duration`: `{"lines", "tokens"}` of the segment, its latent's
    token and any end token included; `segment`, its text; `illegal_action`; at the end also `verdict`. Agents that
    discount use `gamma ** duration`. An agent that draws its actions from `logprobs`, beside the sampling decoder at
    temperature 1 and without caps, writes as the model does by itself, but for the latent that begins the program.

    Args:
        model: as in `TokenCodeEnv`; the model must know latents. It is not to change while this is in use.
        tasks: as in `TokenCodeEnv`, like `split`, `observation`, `max_new_tokens`, `judge_workers`, `reward`, `device`,
            `dtype` and `render_mode`.
        decoder: "sample" draws the decoder's tokens with `self.np_random`, one number each; "greedy" takes the
            likeliest, so that an episode depends on its actions alone.
        temperature: of the sampling decoder; below 1 is sharper.
        segment_lines: a segment ends after so many line breaks at the latest; 1 has the agent choose a latent for each
            line. The embedded model's segments are shorter than the default. `None` for no limit.
        segment_tokens: likewise in tokens, the latent's own not counted. It may end a segment within a line.
        max_decisions: latents per episode; `None` for as many as the tokens allow.
        top_k: only the model's k likeliest latents are legal; `None` for all.
        min_prob: only latents of at least this probability, given that one comes; 0.01 leaves the embedded model a
            handful. The likeliest is always legal.

    Raises:
        ConfigError: an option outside its choices, an empty set of tasks, or a prompt too long for the model.
        ModelError: the model cannot be loaded, or knows no latents.
        UnknownNameError: no such set of tasks; in `reset`, no such task.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel = "embedded",
        tasks: str | Sequence[CodeTask] = "idioms",
        split: str | None = None,
        *,
        decoder: DecoderKind = "sample",
        temperature: float = 1.0,
        segment_lines: int | None = 8,
        segment_tokens: int | None = 64,
        max_new_tokens: int = 192,
        max_decisions: int | None = None,
        top_k: int | None = None,
        min_prob: float | None = None,
        observation: ObservationKind = "hidden",
        judge_workers: int = 1,
        reward: RewardKind = "fraction",
        device: str = "cpu",
        dtype: str = "float32",
        render_mode: str | None = None,
    ) -> None:
        options = SegmentOptions(
            decoder, temperature, segment_lines, segment_tokens, max_decisions, top_k=top_k, min_prob=min_prob
        )
        check_render_mode(render_mode, self.metadata["render_modes"])
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
        self._batch = LatentBatch(self.problem, 1, options)
        self.num_latents = len(self._batch.latent_ids)
        self.action_space = gym.spaces.Discrete(self.num_latents)
        self.observation_space = self.problem.observation_space(self.num_latents)

        self.verdict: Verdict | None = None
        self.decisions = 0
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

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a task: a random one, or that of `options={"task_id": ...}`; `UnknownNameError` if there is none."""
        super().reset(seed=seed)
        self._batch.begin([0], [self.problem.pick(options or {}, self.np_random)])
        self.verdict = None
        self.decisions = 0
        self._done = False
        self._update_actions()
        return self._observe(), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Begin a segment with the action's latent; `gymnasium.error.ResetNeeded` when no episode is under way."""
        if self._done:
            raise gym.error.ResetNeeded("this episode has ended, or none has begun: call reset() first")
        self.decisions += 1
        latent = int(action)
        legal = 0 <= latent < self.num_latents and bool(self._legal_K[latent])
        (segment,) = self._batch.decide([0], [latent if legal else -1], [self.np_random])
        self._update_actions()
        terminated = segment.ended
        truncated = not terminated and (segment.over or self.decisions == self._batch.options.max_decisions)
        reward = 0.0
        info = self._info() | segment_info(segment)
        if terminated or truncated:
            self._done = True
            (self.verdict,) = self.problem.submit(int(self._batch.task_E[0]), self._batch.written(0)).result()
            reward = self.problem.reward(self.verdict)
            info["verdict"] = self.verdict
        return self._observe(), reward, terminated, truncated, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """bool `(K,)`: which latents are legal now; the dialect of sb3-contrib."""
        return self._legal_K.copy()

    def render(self) -> str | None:
        """The program so far, latents included, under a line of status, for `render_mode="ansi"`."""
        if self.render_mode is None:
            return None
        return show(self._batch, 0, self.decisions, self.verdict)

    def close(self) -> None:
        """End the judge's processes; safe to call twice."""
        self.problem.close()

    def _update_actions(self) -> None:
        """The model's own choice of the next latent, and which are legal."""
        logprobs_1K = self._batch.logprobs_BK([0])
        self._logprobs_K: npt.NDArray[np.float32] = logprobs_1K[0]
        self._legal_K: npt.NDArray[np.bool_] = self._batch.legal_BK(logprobs_1K)[0]

    def _observe(self) -> Observation:
        if self.problem.observation == "tokens":
            tokens_L: Observation = self._batch.padded_BL([0])[0]
            return tokens_L
        hidden_D: npt.NDArray[np.float32] = self._batch.hidden_BD([0])[0]
        if self.problem.observation == "hidden":
            return hidden_D
        return {"obs": hidden_D, "mask": self._legal_K.astype(np.int8)}

    def _info(self) -> dict[str, Any]:
        return {
            "task_id": self.task.task_id,
            "logprobs": self._logprobs_K.copy(),
            "action_mask": self._legal_K.astype(np.int8),
        }


def segment_info(segment: Segment) -> dict[str, Any]:
    """What `info` says of the step that led to a segment; an illegal action's covers no line and one token."""
    return {
        "duration": {"lines": segment.lines, "tokens": max(1, len(segment.tokens))},
        "segment": segment.text,
        "illegal_action": segment.latent < 0,
    }


def show(batch: LatentBatch, row: int, decisions: int, verdict: Verdict | None) -> str:
    """A row's program, latents included, under a line of status."""
    task = int(batch.task_E[row])
    spent = f"{decisions} decisions, {batch.spent_E[row]}"
    return f"{batch.problem.status(task, spent, verdict)}\n{batch.problem.tasks[task].prompt}{batch.completion(row)}\n"
