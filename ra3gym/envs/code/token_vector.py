"""Many `TokenCode-v0` at once: one forward pass for the next token of all environments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from ra3gym.envs.batched_episodes import BoolArray, Info
from ra3gym.envs.code.batch import CodeBatch
from ra3gym.envs.code.problem import CodeProblem, ObservationKind, RewardKind
from ra3gym.envs.code.token import ActionSpace, TokenCodeEnv, barred, likeliest, logprobs
from ra3gym.envs.code.vector import CodeVectorEnv
from ra3gym.envs.options import check_choice, check_render_mode, check_vector
from ra3gym.errors import ConfigError
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask


class TokenCodeVectorEnv(CodeVectorEnv):
    """`TokenCodeEnv`, `num_envs` times, over one model: one forward pass per step.

    Step by step it returns what `gymnasium.vector.SyncVectorEnv` does over single environments: observations, rewards,
    flags and infos. See `CodeVectorEnv` for seeds, options of `reset` and grading.

    Args:
        model: see `TokenCodeEnv`, as for all arguments that are not named here.
        num_envs: how many environments, at least 1.
        judge_workers: processes that grade; episodes that end in the same step are graded in parallel.
        autoreset_mode: see `BatchedEnv`.

    Raises:
        ConfigError, ModelError, UnknownNameError: as `TokenCodeEnv`; `ConfigError` also for a number of environments
            below 1 or an unknown mode.
    """

    metadata: dict[str, Any] = {**TokenCodeEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel = "embedded",
        tasks: str | Sequence[CodeTask] = "idioms",
        split: str | None = None,
        *,
        num_envs: int = 1,
        action_space: ActionSpace = "topk",
        top_k: int = 32,
        observation: ObservationKind = "hidden",
        max_new_tokens: int = 192,
        judge_workers: int = 2,
        reward: RewardKind = "fraction",
        shaping: Mapping[str, float] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        mode = check_vector(num_envs, autoreset_mode)
        check_choice("action_space", action_space, ActionSpace)
        check_render_mode(render_mode, self.metadata["render_modes"])
        if top_k < 1:
            raise ConfigError(f"top_k={top_k} must be at least 1")
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
        self._top_k = min(top_k, int(problem.writable_V.sum())) if action_space == "topk" else None
        num_actions = self._top_k or problem.vocab_size
        super().__init__(CodeBatch(problem, num_envs), num_actions, mode, render_mode)
        if self._top_k is None:
            self._legal_En[:] = problem.writable_V.numpy()
        self._barred_V = barred(problem)
        self._candidates_En = np.tile(np.arange(num_actions), (num_envs, 1))
        self._logprobs_En = np.zeros((num_envs, num_actions), dtype=np.float32)

    def _advance(self, rows: Sequence[int], actions: Sequence[int]) -> tuple[BoolArray, BoolArray, Info]:
        at, action_B = list(rows), np.array(actions)
        legal_B = action_B >= 0
        token_B = np.where(legal_B, self._candidates_En[at, action_B], -1)
        writing = [e for e, legal in zip(rows, legal_B.tolist(), strict=True) if legal]
        self._batch.stream.append(writing, token_B[legal_B].tolist())
        self._batch.spent_E[at] += 1
        terminated_B = np.array([token in self.problem.end_ids for token in token_B.tolist()])
        truncated_B = ~terminated_B & (self._batch.spent_E[at] >= self.problem.max_new_tokens)
        for i in np.flatnonzero(terminated_B | truncated_B).tolist():
            self._hand_in(rows[i])  # ahead of the forward pass, so that grading runs beside it
        if writing:
            self._batch.stream.read(writing)
        columns: Info = {"duration": {"tokens": np.ones(len(rows), dtype=np.int64)}, "illegal_action": ~legal_B}
        return terminated_B, truncated_B, columns

    def _update_actions(self, rows: Sequence[int]) -> None:
        """What each action would write now, and its log-probability."""
        at = list(rows)
        logits_BV = self._batch.stream.logits_BV(rows)
        if self._top_k is None:
            self._logprobs_En[at] = logprobs(logits_BV)
        else:
            self._candidates_En[at], self._logprobs_En[at] = likeliest(logits_BV, self._top_k, self._barred_V)

    def _actions(self, rows: Sequence[int]) -> Info:
        at = list(rows)
        return {"candidates": self._candidates_En[at], "logprobs": self._logprobs_En[at]}
