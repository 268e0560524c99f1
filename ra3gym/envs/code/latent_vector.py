"""Many `LatentCode-v0` at once: the decoder writes all environments' segments in one batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from ra3gym.envs.batched_episodes import BoolArray, Info
from ra3gym.envs.code.batch import DecoderKind, LatentBatch, Segment, SegmentBatch, SegmentOptions
from ra3gym.envs.code.latent import LatentCodeEnv, segment_info
from ra3gym.envs.code.problem import CodeProblem, ObservationKind, RewardKind
from ra3gym.envs.code.vector import CodeVectorEnv
from ra3gym.envs.options import check_render_mode, check_vector
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask


class LatentCodeVectorEnv(CodeVectorEnv):
    """`LatentCodeEnv`, `num_envs` times, over one model: one forward pass per token for all that are writing.

    Step by step it returns what `gymnasium.vector.SyncVectorEnv` does over single environments: observations, rewards,
    flags and infos. A step lasts as long as its longest segment; environments whose segment has ended cost nothing
    more, and those that begin anew have their prompts read together. See `CodeVectorEnv` for seeds, options of `reset`
    and grading.

    Args:
        model: see `LatentCodeEnv`, as for all arguments that are not named here.
        num_envs: how many environments, at least 1.
        judge_workers: processes that grade; episodes that end in the same step are graded in parallel.
        autoreset_mode: see `BatchedEnv`.

    Raises:
        ConfigError, ModelError, UnknownNameError: as `LatentCodeEnv`; `ConfigError` also for a number of environments
            below 1 or an unknown mode.
    """

    metadata: dict[str, Any] = {**LatentCodeEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel = "embedded",
        tasks: str | Sequence[CodeTask] = "idioms",
        split: str | None = None,
        *,
        num_envs: int = 1,
        decoder: DecoderKind = "sample",
        temperature: float = 1.0,
        segment_lines: int | None = 8,
        segment_tokens: int | None = 64,
        max_new_tokens: int = 192,
        max_decisions: int | None = None,
        top_k: int | None = None,
        min_prob: float | None = None,
        observation: ObservationKind = "hidden",
        judge_workers: int = 2,
        reward: RewardKind = "fraction",
        shaping: Mapping[str, float] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        mode = check_vector(num_envs, autoreset_mode)
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
        self._latent_batch = LatentBatch(problem, num_envs, options)
        self.num_latents = len(self._latent_batch.latent_ids)
        super().__init__(self._latent_batch, self.num_latents, mode, render_mode)
        self._logprobs_EK = np.zeros((num_envs, self.num_latents), dtype=np.float32)

    def _advance(self, rows: Sequence[int], actions: Sequence[int]) -> tuple[BoolArray, BoolArray, Info]:
        rngs = [self._rngs[e] for e in rows]
        segments = self._latent_batch.decide(rows, actions, rngs, on_over=self._hand_in)
        return segments_taken(self._latent_batch, rows, segments, self._hand_in)

    def _update_actions(self, rows: Sequence[int]) -> None:
        logprobs_BK = self._latent_batch.logprobs_BK(rows)
        self._logprobs_EK[list(rows)] = logprobs_BK
        self._legal_En[list(rows)] = self._latent_batch.legal_BK(logprobs_BK)

    def _actions(self, rows: Sequence[int]) -> Info:
        return {"logprobs": self._logprobs_EK[list(rows)]}


def segments_taken(
    batch: SegmentBatch, rows: Sequence[int], segments: Sequence[Segment], hand_in: Callable[[int], None]
) -> tuple[BoolArray, BoolArray, Info]:
    """What `CodeVectorEnv._advance` returns of these rows' segments; rows that are out of decisions are handed in."""
    over_B = np.array([segment.over for segment in segments])
    spent_B = np.array([batch.out_of_decisions(row) for row in rows])
    for i in np.flatnonzero(spent_B & ~over_B).tolist():
        hand_in(rows[i])
    terminated_B = np.array([segment.ended for segment in segments])
    truncated_B = (over_B | spent_B) & ~terminated_B
    infos = [segment_info(segment) for segment in segments]
    columns: Info = {
        "duration": {key: np.array([info["duration"][key] for info in infos]) for key in ("lines", "tokens")},
        "segment": np.array([info["segment"] for info in infos], dtype=object),
        "illegal_action": np.array([info["illegal_action"] for info in infos]),
    }
    return terminated_B, truncated_B, columns
