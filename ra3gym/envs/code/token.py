"""`ra3gym/TokenCode-v0`: write a Python program one token at a time; the reward is its share of hidden tests passed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ra3gym.envs.code.batch import CodeBatch
from ra3gym.envs.code.problem import CodeProblem, ObservationKind, RewardKind
from ra3gym.envs.code.single import CodeEnv
from ra3gym.envs.options import check_choice, check_render_mode
from ra3gym.errors import ConfigError
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask

ActionSpace = Literal["topk", "full"]


class TokenCodeEnv(CodeEnv):
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
    otherwise (`"all"`). `shaping` adds terms to it, each with a weight of yours: `"format"`, 1 if the program parses as
    Python; `"length"`, the share of `max_new_tokens` that was used, so its weight is negative as a rule. The terms are
    in `info["reward_terms"]` at the end.

    **Info.** Always `task_id`, `candidates` (int64 token id per action), `logprobs` (float32, nats, per action, under
    the model's whole vocabulary) and `action_mask`. After a step also `duration` (`{"tokens": 1}`) and
    `illegal_action`; at the end also `verdict` and `reward_terms`.

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
        shaping: see above; `{"format": 0.1, "length": -0.2}`, say. `None` for no such terms.
        device: where a model given by name is loaded.
        dtype: its precision, as `ra3gym.lm.load` names it.
        render_mode: `None`, "ansi" or "rgb_array".

    Raises:
        ConfigError: an option outside its choices, an empty set of tasks, or a prompt too long for the model.
        ModelError: the model cannot be loaded.
        UnknownNameError: no such set of tasks; in `reset`, no such task.
    """

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
        shaping: Mapping[str, float] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        render_mode: str | None = None,
    ) -> None:
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
        self._barred_V = barred(problem)
        self._top_k = min(top_k, int(problem.writable_V.sum())) if action_space == "topk" else None
        super().__init__(CodeBatch(problem, 1), self._top_k or problem.vocab_size, render_mode)
        if self._top_k is None:
            self._legal_n = problem.writable_V.numpy()

    def _advance(self, action: int) -> tuple[bool, bool, dict[str, Any]]:
        self._batch.spent_E[0] += 1
        legal = action >= 0
        if legal:
            self._batch.stream.write([0], [int(self._candidates[action])])
        terminated = legal and self._batch.written(0)[-1] in self.problem.end_ids
        truncated = not terminated and bool(self._batch.spent_E[0] >= self.max_new_tokens)
        return terminated, truncated, {"duration": {"tokens": 1}, "illegal_action": not legal}

    def _update_actions(self) -> None:
        """What each action would write now, and its log-probability; candidates are always legal."""
        logits_1V = self._batch.stream.logits_BV([0])
        if self._top_k is None:
            self._candidates, self._logprobs = np.arange(self.problem.vocab_size), logprobs(logits_1V)[0]
        else:
            candidates_1k, logprobs_1k = likeliest(logits_1V, self._top_k, self._barred_V)
            self._candidates, self._logprobs = candidates_1k[0], logprobs_1k[0]

    def _actions(self) -> dict[str, Any]:
        return {"candidates": self._candidates.copy(), "logprobs": self._logprobs.copy()}


def barred(problem: CodeProblem) -> Tensor:
    """float32 `(V,)` on the model's device: -inf at tokens that cannot be candidates, 0 elsewhere."""
    zero_V = torch.zeros(problem.vocab_size, device=problem.loaded.model.device)
    return zero_V.masked_fill_(~problem.writable_V.to(zero_V.device), -torch.inf)


def logprobs(logits_BV: Tensor) -> npt.NDArray[np.float32]:
    """float32 `(B, V)`, nats: log-probabilities of all tokens."""
    found: npt.NDArray[np.float32] = logits_BV.float().log_softmax(-1).cpu().numpy()
    return found


@torch.inference_mode()
def likeliest(logits_BV: Tensor, k: int, barred_V: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k likeliest tokens of each row that are not barred, in falling order: ids and log-probabilities, `(B, k)`.

    Log-probabilities are those under the whole vocabulary.
    """
    # Several times faster than masked_fill, and in place: the sum is written over what is new here in any case.
    top = logits_BV.float().log_softmax(-1).add_(barred_V).topk(k)
    return top.indices.cpu().numpy(), top.values.cpu().numpy()
