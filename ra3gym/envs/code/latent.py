"""`ra3gym/LatentCode-v0`: write a Python program one latent at a time; a frozen decoder turns each into lines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ra3gym.envs.code.batch import DecoderKind, LatentBatch, Segment, SegmentOptions
from ra3gym.envs.code.problem import CodeProblem, ObservationKind, RewardKind
from ra3gym.envs.code.single import CodeEnv
from ra3gym.envs.options import check_render_mode
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask


class LatentCodeEnv(CodeEnv):
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
    token and any end token included; `segment`, its text; `illegal_action`; at the end also `verdict` and
    `reward_terms`. Agents that discount use `gamma ** duration`. An agent that draws its actions from `logprobs`,
    beside the sampling decoder at temperature 1 and without caps, writes as the model does by itself, but for the
    latent that begins the program.

    Args:
        model: as in `TokenCodeEnv`; the model must know latents. It is not to change while this is in use.
        tasks: as in `TokenCodeEnv`, like `split`, `observation`, `max_new_tokens`, `judge_workers`, `reward`,
            `shaping`, `device`, `dtype` and `render_mode`.
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
        shaping: Mapping[str, float] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        render_mode: str | None = None,
    ) -> None:
        options = SegmentOptions(
            decoder, temperature, segment_lines, segment_tokens, max_decisions, top_k=top_k, min_prob=min_prob
        )
        check_render_mode(render_mode, self.metadata["render_modes"])
        problem = CodeProblem(
            model,
            tasks,
            split,
            max_new_tokens=max_new_tokens,
            observation=observation,
            reward=reward,
            shaping=shaping,
            judge_workers=judge_workers,
            device=device,
            dtype=dtype,
        )
        self._latent_batch = LatentBatch(problem, 1, options)
        self.num_latents = len(self._latent_batch.latent_ids)
        super().__init__(self._latent_batch, self.num_latents, render_mode)

    @property
    def decisions(self) -> int:
        """How many actions this episode has taken."""
        return int(self._latent_batch.decisions_E[0])

    def _advance(self, action: int) -> tuple[bool, bool, dict[str, Any]]:
        (segment,) = self._latent_batch.decide([0], [action], [self.np_random])
        truncated = not segment.ended and (segment.over or self._latent_batch.out_of_decisions(0))
        return segment.ended, truncated, segment_info(segment)

    def _update_actions(self) -> None:
        logprobs_1K = self._latent_batch.logprobs_BK([0])
        self._logprobs_K: npt.NDArray[np.float32] = logprobs_1K[0]
        self._legal_n = self._latent_batch.legal_BK(logprobs_1K)[0]

    def _actions(self) -> dict[str, Any]:
        return {"logprobs": self._logprobs_K.copy()}


def segment_info(segment: Segment) -> dict[str, Any]:
    """What `info` says of the step that led to a segment; an illegal action's covers no line and one token."""
    return {
        "duration": {"lines": segment.lines, "tokens": max(1, len(segment.tokens))},
        "segment": segment.text,
        "illegal_action": segment.latent < 0,
    }
