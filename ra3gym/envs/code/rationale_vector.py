"""Many `RationaleCode-v0` at once: proposals and programs of all environments are written in one batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from ra3gym.envs.batched_episodes import BoolArray, Info
from ra3gym.envs.code.batch import DecoderKind, SegmentOptions
from ra3gym.envs.code.latent_vector import segments_taken
from ra3gym.envs.code.problem import CodeProblem, ObservationKind, RewardKind
from ra3gym.envs.code.rationale import RationaleCodeEnv, choices_info
from ra3gym.envs.code.rationale_batch import Choices, RationaleBatch
from ra3gym.envs.code.vector import CodeVectorEnv
from ra3gym.envs.options import check_render_mode, check_vector
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask


class RationaleCodeVectorEnv(CodeVectorEnv):
    """`RationaleCodeEnv`, `num_envs` times, over one model: one forward pass per token for all that are writing.

    Step by step it returns what `gymnasium.vector.SyncVectorEnv` does over single environments: observations, rewards,
    flags and infos; `info["proposals"]` is an array of tuples. The proposals of all environments are drawn in one
    batch, and so are their segments. See `CodeVectorEnv` for seeds, options of `reset` and grading.

    Args:
        model: see `RationaleCodeEnv`, as for all arguments that are not named here.
        num_envs: how many environments, at least 1.
        judge_workers: processes that grade; episodes that end in the same step are graded in parallel.
        autoreset_mode: see `BatchedEnv`.

    Raises:
        ConfigError, ModelError, UnknownNameError: as `RationaleCodeEnv`; `ConfigError` also for a number of
            environments below 1 or an unknown mode.
    """

    metadata: dict[str, Any] = {**RationaleCodeEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel = "embedded",
        tasks: str | Sequence[CodeTask] = "idioms",
        split: str | None = None,
        *,
        num_envs: int = 1,
        proposals: int = 4,
        max_comment_tokens: int = 24,
        decoder: DecoderKind = "sample",
        temperature: float = 1.0,
        segment_lines: int | None = 1,
        segment_tokens: int | None = None,
        max_new_tokens: int = 192,
        max_decisions: int | None = None,
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
        options = SegmentOptions(decoder, temperature, segment_lines, segment_tokens, max_decisions)
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
        self._rationale_batch = RationaleBatch(
            problem, num_envs, options, num_proposals=proposals, max_comment_tokens=max_comment_tokens
        )
        super().__init__(self._rationale_batch, proposals + 1, mode, render_mode)
        self._choices: dict[int, Choices] = {}

    def _advance(self, rows: Sequence[int], actions: Sequence[int]) -> tuple[BoolArray, BoolArray, Info]:
        rngs = [self._rngs[e] for e in rows]
        segments = self._rationale_batch.decide(rows, actions, rngs, on_over=self._hand_in)
        return segments_taken(self._rationale_batch, rows, segments, self._hand_in)

    def _update_actions(self, rows: Sequence[int]) -> None:
        found = self._rationale_batch.propose(rows, [self._rngs[e] for e in rows])
        self._choices.update(zip(rows, found, strict=True))
        self._legal_En[list(rows)] = [choices.legal_n for choices in found]

    def _actions(self, rows: Sequence[int]) -> Info:
        infos = [choices_info(self._choices[row]) for row in rows]
        text_B = np.empty(len(infos), dtype=object)  # np.array would make a table of the tuples
        text_B[:] = [info["proposals"] for info in infos]
        return {
            "proposals": text_B,
            "logprobs": np.array([info["logprobs"] for info in infos]),
            "proposal_tokens": np.array([info["proposal_tokens"] for info in infos]),
            "asked": self._rationale_batch.asked_E[list(rows)],
        }
