"""`ra3gym/TokenCode-v0`: write a Python program one token at a time; the reward is its share of hidden tests passed.

Shape letters: see CONTRIBUTING.md (E environments, B rows of this call, A actions, V vocabulary).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ra3gym.envs.batched_episodes import Info
from ra3gym.envs.code.batch import ILLEGAL, CodeBatch, Step
from ra3gym.envs.code.episodes import CodeEnv, CodeVectorEnv
from ra3gym.envs.code.problem import CodeConfig
from ra3gym.envs.keywords import check_choice
from ra3gym.errors import ConfigError

ActionSpace = Literal["topk", "full"]


@dataclass(frozen=True, kw_only=True)
class TokenConfig(CodeConfig):
    """The keywords of `TokenCode-v0`: those of `CodeConfig`, and these.

    Attributes:
        action_space: "topk" makes an action an index into the `top_k` likeliest tokens; "full" makes it a token id.
        top_k: candidates per step; 8 to 64 keeps nearly all the mass of a trained model. Lowered to the number of
            legal tokens if there are fewer.

    Raises:
        ConfigError: a value outside its choices or range.
    """

    action_space: ActionSpace = "topk"
    top_k: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("action_space", self.action_space, ActionSpace)
        if self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1")


class TokenBatch(CodeBatch[TokenConfig]):
    """Programs that grow by one token in each step."""

    def __init__(self, config: TokenConfig, num_rows: int) -> None:
        super().__init__(config, num_rows)
        writable_V = self.problem.writable_V
        if config.action_space == "full":
            self.legal_EA[:] = writable_V.numpy()
        zero_V = torch.zeros(len(writable_V), device=self.problem.loaded.model.device)
        self._penalty_V = zero_V.masked_fill_(~writable_V.to(zero_V.device), -torch.inf)
        """float32: -inf at tokens that cannot be candidates, else 0."""
        self._candidates_EA = np.tile(np.arange(self.num_actions), (num_rows, 1))
        self._logprobs_EA = np.zeros((num_rows, self.num_actions), dtype=np.float32)

    def _count_actions(self) -> int:
        if self.config.action_space == "full":
            return self.problem.vocab_size
        return min(self.config.top_k, int(self.problem.writable_V.sum()))

    def _advance(self, rows: Sequence[int], actions: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> Step:
        writing = [row for row, action in zip(rows, actions, strict=True) if action != ILLEGAL]
        tokens = [int(self._candidates_EA[row, a]) for row, a in zip(rows, actions, strict=True) if a != ILLEGAL]
        self._append(writing, tokens)
        self.spent_E[self._index(rows)] += 1
        ended = {row for row, token in zip(writing, tokens, strict=True) if token in self.problem.end_ids}
        exhausted = {row for row in rows if self.spent_E[row] >= self.config.max_new_tokens} - ended
        for row in rows:
            if row in ended or row in exhausted:
                self._submit(row)
        if writing:
            self.stream.read(writing)
        infos: Info = {
            "duration": {"tokens": np.ones(len(rows), dtype=np.int64)},
            "illegal_action": np.array([action == ILLEGAL for action in actions]),
        }
        return Step(np.array([row in ended for row in rows]), np.array([row in exhausted for row in rows]), infos)

    def _update_actions(self, rows: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> None:
        index_B, logits_BV = self._index(rows), self.stream.logits_BV(rows)
        allowed_BV = None if self.forcing is None else self.forcing.allowed_BV(rows, self.problem.writable_V)
        if self.config.action_space == "full":
            self._logprobs_EA[index_B] = logits_BV.float().log_softmax(-1).cpu().numpy()
            if allowed_BV is not None:
                self.legal_EA[index_B] = allowed_BV.numpy()
            return
        penalty = self._penalty_V
        if allowed_BV is not None:
            allowed_BV = allowed_BV.to(penalty.device)
            penalty = torch.zeros(allowed_BV.shape, device=penalty.device).masked_fill_(~allowed_BV, -torch.inf)
        candidates_BA, logprobs_BA = likeliest(logits_BV, self.num_actions, penalty)
        self._candidates_EA[index_B], self._logprobs_EA[index_B] = candidates_BA, logprobs_BA
        if allowed_BV is not None:
            self.legal_EA[index_B] = np.isfinite(logprobs_BA)

    def _action_infos(self, rows: Sequence[int]) -> Info:
        index_B = self._index(rows)
        return {"candidates": self._candidates_EA[index_B].copy(), "logprobs": self._logprobs_EA[index_B].copy()}


class TokenCodeEnv(CodeEnv):
    """Solve a `CodeTask` token by token.

    **Actions.** `action_space="topk"` (default): `Discrete(top_k)`, an index into the model's likeliest next tokens,
    in falling order, listed in `info["candidates"]`. `"full"`: `Discrete(V)`, a token id. Candidates are legal. In the
    full vocabulary, ids without a token and special tokens other than end, latents and pause are masked.
    The mask comes as `info["action_mask"]` (int8), as `action_masks()` (bool) and in the `"dict"` observation.
    *An illegal action* (masked, or out of range) writes nothing, uses up one token of the budget, and is reported as
    `info["illegal_action"]`.

    *Where the tokenizer would join the prompt's end to the first token* (a line break to an indent, with GPT-2's kind),
    episodes begin before that end, and until it is written only tokens that agree with it are legal candidates.

    **Observations.** `"hidden"` (default): float32 `(D,)`, the model's last hidden state. `"tokens"`: int64, the ids of
    prompt and program, padded on the right to the longest prompt plus `max_new_tokens`. `"dict"`: a flat Dict of
    `"obs"`, the hidden state, and `"mask"`, int8 `(A,)`.

    **Episode.** `reset` draws a task with `self.np_random`; `reset(options={"task_id": ...})` picks one. An end token
    terminates; `max_new_tokens` actions without one truncate. *Either way the program is graded*: a cut-off program
    can be right, or partly right. Latent and pause tokens are stripped from it first.

    **Reward.** 0 until the end, then the fraction of hidden tests passed (`reward="fraction"`) or 1 if all pass and 0
    otherwise (`"all"`). `shaping` adds weighted terms: `"format"`, 1 if the program parses as Python; `"length"`, the
    share of `max_new_tokens` that was used, so its weight is negative as a rule. At the end the terms are in
    `info["reward_terms"]`.

    **Info.** Always `task_id`, `candidates` (int64, token id per action), `logprobs` (float32, nats, per action, under
    the model's whole vocabulary) and `action_mask`. After a step also `duration` (`{"tokens": 1}`) and
    `illegal_action`; at the end also `verdict` and `reward_terms`.

    The keywords are the fields of `TokenConfig`.

    Raises:
        ConfigError: a keyword outside its choices, an empty set of tasks, or a prompt too long for the model.
        ModelError: the model cannot be loaded.
        UnknownNameError: no such keyword or set of tasks; in `reset`, no such task.
    """

    config_type = TokenConfig
    batch_type = TokenBatch


class TokenCodeVectorEnv(CodeVectorEnv):
    """`TokenCodeEnv`, `num_envs` times, over one model: one forward pass per step. See `CodeVectorEnv`."""

    config_type = TokenConfig
    batch_type = TokenBatch


@torch.inference_mode()
def likeliest(logits_BV: Tensor, top_k: int, penalty: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the `top_k` likeliest tokens of each row in falling order, and their log-probabilities, both `(B, A)`.

    Log-probabilities are those under the whole vocabulary. `penalty`, `(V,)` or `(B, V)`, is 0 or -inf. Where fewer
    than `top_k` tokens have none, others come last, with -inf.
    """
    # Several times faster than masked_fill. In place, because log_softmax has made a new array in any case.
    top = logits_BV.float().log_softmax(-1).add_(penalty).topk(top_k)
    return top.indices.cpu().numpy(), top.values.cpu().numpy()
