"""Scores of several completions per prompt, with gradient; the pass over a shared prompt is computed once.

Shape letters: see CONTRIBUTING.md (C tokens of all completions, B rows of one pass). `output` is what predicts a token:
the last hidden state, of width D, where the output layer is linear, else the logits, of width V.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ra3gym.errors import ConfigError
from ra3gym.lm.caches import has_row_cache
from ra3gym.lm.fast.cpu_attention import plain_attention
from ra3gym.lm.fast.linear_scores import linear_scores, log_softmax
from ra3gym.lm.loss import LINEAR_HEAD
from ra3gym.lm.rendering import FirstChoice

_MAX_PASSES = 4
_PASS_TOKENS = 128
"""The cost of one more pass over the layers, in tokens. Rows are split by length where that saves more padding."""


@dataclass(frozen=True)
class CompletionScores:
    """Scores of R completions; column t belongs to token t, and all scores are 0 where the mask is false.

    Attributes:
        logp_RT: log-probability of the token, float32, nats.
        entropy_RT: entropy of the distribution that predicts the token, float32, nats; `None` unless requested.
        hidden_RTD: the last hidden state before the token, after the final norm, as the output layer reads it; `None`
            unless requested.
        mask_RT: bool, true at the tokens of the completion.
    """

    logp_RT: Tensor
    entropy_RT: Tensor | None
    hidden_RTD: Tensor | None
    mask_RT: Tensor


def group_scores(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
    *,
    temperature: float = 1.0,
    allowed_mask_V: Tensor | None = None,
    entropy: bool = False,
    hidden: bool = False,
    first_choices: Sequence[FirstChoice] = (),
) -> CompletionScores:
    """Score completions given their prompts, with gradient where gradients are enabled.

    A prompt goes through the layers once for all its rows, and gets gradient from all of them. Rows of similar length
    are read together. The output layer runs only at the completions' tokens; for Llama, Mistral and Qwen the logits and
    their gradient are formed in blocks. A model that checkpoints activations cannot have a cache, and a recurrent state
    (`ra3gym.lm.caches`) cannot be repeated: then each row is read with its prompt. Gradients equal those of whole
    sequences and full logits.

    Weights are used only inside this call and inside the modules' own forward passes. So it may be called in the
    forward pass of a module that DistributedDataParallel or FSDP wraps, and under autocast.

    Args:
        model: any causal language model of transformers.
        prompts: P prompts, at least one token each.
        completions: R completions, possibly empty, end token included where it should count.
        prompt_of_row: for each completion the index of its prompt, in any order.
        temperature: divides the logits, as in `generate`.
        allowed_mask_V: bool, the tokens that could be sampled; probabilities are renormalized over them. The
            log-probability of other tokens is minus infinity.
        entropy: whether to return the entropy of each token's distribution.
        hidden: whether to return the state before each token, for a value head.
        first_choices: for each completion, its first decision, where prompts force text (`ra3gym.lm.rendering`): it is
            scored among the tokens that it was chosen from.

    Raises:
        ConfigError: an empty prompt, not one prompt per completion, or a mask of the wrong type or size.
    """
    states = _States(model, want_hidden=hidden)
    row_C, column_C, output_C, hidden_CD = _read(states, prompts, completions, prompt_of_row)
    device = states.device
    num_columns = max(map(len, completions), default=0)
    ids_RT = torch.zeros(len(completions), num_columns, dtype=torch.int64)
    for row, completion in enumerate(completions):
        ids_RT[row, : len(completion)] = torch.tensor([*completion], dtype=torch.int64)
    length_R1 = torch.tensor([[len(completion)] for completion in completions], device=device).view(-1, 1)
    mask_RT = torch.arange(num_columns, device=device) < length_R1
    target_C = ids_RT.to(device)[row_C, column_C]
    logp_C, entropy_C = states.scores(output_C, target_C, temperature, allowed_mask_V, entropy)
    if any(choice.allowed_V is not None for choice in first_choices):
        columns = [-1 if choice.allowed_V is None else choice.column for choice in first_choices]
        at = (column_C == torch.tensor(columns, device=device)[row_C]).nonzero()[:, 0]
        masks = [first_choices[row].allowed_V for row in row_C[at].tolist()]
        allowed_BV = torch.stack([mask_V for mask_V in masks if mask_V is not None]).to(device)
        first_B, first_entropy_B = states.choice_scores(
            output_C[at], target_C[at], temperature, allowed_mask_V, allowed_BV, entropy
        )
        logp_C = logp_C.index_put((at,), first_B.to(logp_C.dtype))
        if entropy_C is not None and first_entropy_B is not None:
            entropy_C = entropy_C.index_put((at,), first_entropy_B.to(entropy_C.dtype))

    def as_rows(x: Tensor) -> Tensor:
        empty = x.new_zeros((*mask_RT.shape, *x.shape[1:]))
        return empty.index_put((row_C, column_C), x)

    return CompletionScores(
        as_rows(logp_C),
        None if entropy_C is None else as_rows(entropy_C),
        as_rows(hidden_CD) if hidden else None,
        mask_RT,
    )


def group_logits(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return the logits that predict each token of each completion: R tensors of shape (tokens, V), with gradient.

    For what `group_scores` does not compute: conditions and choices among a few tokens. Arguments, errors and the way
    of reading are those of `group_scores`; all logits are in memory at once.
    """
    states = _States(model, want_hidden=False)
    row_C, column_C, output_C, _ = _read(states, prompts, completions, prompt_of_row)
    lengths = [len(completion) for completion in completions]
    order = (row_C * max(lengths, default=0) + column_C).argsort()
    rows: tuple[Tensor, ...] = states.logits(output_C[order]).split(lengths)
    return rows


def _read(
    states: _States,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
) -> Part:
    """Read all completions; return the parts of all passes, one after the other, on the model's device."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ConfigError("group_scores needs at least one prompt, and at least one token in each; see encode_prompt")
    if len(completions) != len(prompt_of_row) or not all(0 <= i < len(prompts) for i in prompt_of_row):
        raise ConfigError(
            f"{len(completions)} completions and {len(prompt_of_row)} entries of prompt_of_row: give one for each, "
            f"from 0 to {len(prompts) - 1}"
        )
    if states.checkpoints_activations or not states.has_row_cache:
        parts = list(_read_whole_rows(states, prompts, completions, prompt_of_row))
    else:
        # Models of other kinds may ask more of their attention (a cap of its scores, sinks).
        with plain_attention(states.body) if states.has_linear_head else nullcontext():
            parts = list(_read_shared(states, prompts, completions, prompt_of_row))
    row_C, column_C = (torch.cat([part[i] for part in parts]).to(states.device) for i in (0, 1))
    output_C = torch.cat([part[2] for part in parts])
    return row_C, column_C, output_C, torch.cat([part[3] for part in parts]) if states.want_hidden else output_C


class _States:
    """A model's forward pass, up to the input of its output layer where that layer is linear, else up to the logits."""

    def __init__(self, model: Any, want_hidden: bool) -> None:
        self.model, self.want_hidden = model, want_hidden
        self.device = next(model.parameters()).device
        # Adapters of peft are inside the model that they wrap; FSDP2 gives modules a class of its own.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        name = type(base).__name__.removeprefix("FSDP")
        self._head = base.lm_head if name in LINEAR_HEAD and type(base.lm_head) is nn.Linear else None
        self.body = base.model if self._head is not None else model
        self.has_linear_head = self._head is not None
        self.config = base.config
        self.has_row_cache = has_row_cache(base)
        # Ranks that share a model's weights must run the same number of passes.
        self.one_pass = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        self.checkpoints_activations = model.training and any(
            getattr(part, "gradient_checkpointing", False) for part in model.modules()
        )

    def read(self, ids: Tensor, mask: Tensor, position: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Return, for each position, the input of `scores` and the hidden state (any tensor unless wanted)."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": position}
        inputs |= {"past_key_values": cache, "use_cache": cache is not None}
        if self._head is not None:
            states: Tensor = self.body(**inputs).last_hidden_state
            return states, states
        output = self.body(**inputs, output_hidden_states=self.want_hidden)
        return output.logits, output.hidden_states[-1] if self.want_hidden else output.logits

    def logits(self, output_C: Tensor) -> Tensor:
        """Return the next-token logits of what `read` gave, shape (C, V)."""
        return output_C if self._head is None else self._head(output_C)

    def scores(
        self, output_C: Tensor, target_C: Tensor, temperature: float, allowed_mask_V: Tensor | None, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities, and entropies if wanted, both `(C,)`."""
        vocab_size = output_C.shape[1] if self._head is None else len(self._head.weight)
        banned_V = None if allowed_mask_V is None else _banned(allowed_mask_V, vocab_size, self.device)
        if self._head is not None:
            options: dict[str, Any] = {"temperature": temperature, "banned_V": banned_V, "entropy": entropy}
            return linear_scores(output_C, self._head.weight, self._head.bias, target_C, **options)
        return _scores_of_logits(output_C, target_C, temperature, banned_V, entropy)

    def choice_scores(
        self,
        output_B: Tensor,
        target_B: Tensor,
        temperature: float,
        allowed_mask_V: Tensor | None,
        allowed_BV: Tensor,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the same for tokens that were chosen from `allowed_BV`, each from its own."""
        banned_BV = ~allowed_BV
        if allowed_mask_V is not None:
            banned_BV = banned_BV | _banned(allowed_mask_V, allowed_BV.shape[1], self.device)
        return _scores_of_logits(self.logits(output_B), target_B, temperature, banned_BV, entropy)


def _scores_of_logits(
    logits_CV: Tensor, target_C: Tensor, temperature: float, banned: Tensor | None, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities, and entropies if wanted, both `(C,)`; `banned` is bool, `(V,)` or `(C, V)`."""
    logp_CV = log_softmax(logits_CV, temperature, banned)
    logp_C = logp_CV.gather(1, target_C[:, None])[:, 0]
    if not entropy:
        return logp_C, None
    # Replace the logarithm of banned tokens: the gradient of the product would be 0 times infinity.
    log_or_zero_CV = logp_CV if banned is None else logp_CV.masked_fill(banned, 0.0)
    return logp_C, -(logp_CV.exp() * log_or_zero_CV).sum(-1)


Part = tuple[Tensor, Tensor, Tensor, Tensor]
"""Rows, columns, the output that predicts the token there, and the hidden state."""


def _read_shared(
    states: _States,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
) -> Iterator[Part]:
    """Read prompts once, then the completions on copies of their keys and values, which carry gradients back."""
    from transformers import DynamicCache

    used = sorted(set(prompt_of_row)) or [0]
    ids_PL, mask_PL = _padded([prompts[p] for p in used], states.device, left=True)
    cache = DynamicCache(config=states.config)
    output_PL, hidden_PLD = states.read(ids_PL, mask_PL, (mask_PL.cumsum(1) - 1).clamp_(min=0), cache)
    prompt_R = torch.tensor([used.index(p) for p in prompt_of_row], dtype=torch.int64)
    length_R = torch.tensor([len(completion) for completion in completions], dtype=torch.int64)
    begun = (length_R > 0).nonzero()[:, 0]
    first = prompt_R[begun].to(states.device)
    yield (
        begun,
        torch.zeros_like(begun),
        output_PL[:, -1].index_select(0, first),
        hidden_PLD[:, -1].index_select(0, first),
    )
    for rows in _passes(length_R, 1 if states.one_pass else _MAX_PASSES):
        # The last token predicts nothing. A single token is read nevertheless, so that all ranks run the same passes.
        ids_BT, mask_BT = _padded(
            [completions[n][: max(1, len(completions[n]) - 1)] or [0] for n in rows], states.device
        )
        prompt_B = prompt_R[rows].to(states.device)
        start_B1 = mask_PL.sum(1)[prompt_B][:, None]
        output_BT, hidden_BTD = states.read(
            ids_BT,
            torch.cat([mask_PL[prompt_B], mask_BT], dim=1),
            start_B1 + torch.arange(ids_BT.shape[1], device=states.device),
            _repeated(cache, prompt_B),
        )
        predicts = torch.arange(ids_BT.shape[1]) < length_R[rows][:, None] - 1
        m, column = predicts.nonzero(as_tuple=True)
        at = (m * ids_BT.shape[1] + column).to(states.device)
        yield rows[m], column + 1, output_BT.flatten(0, 1)[at], hidden_BTD.flatten(0, 1)[at]


def _read_whole_rows(
    states: _States,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prompt_of_row: Sequence[int],
) -> Iterator[Part]:
    """Read each completion after its prompt, without a cache."""
    texts = [[*prompts[p], *completion] for p, completion in zip(prompt_of_row, completions, strict=True)]
    length_R = torch.tensor(list(map(len, completions)), dtype=torch.int64)
    start_R = torch.tensor([len(prompts[p]) for p in prompt_of_row], dtype=torch.int64)
    for rows in _passes(length_R + start_R, 1 if states.one_pass else _MAX_PASSES):
        ids_BT, mask_BT = _padded([texts[n] for n in rows], states.device)
        output_BT, hidden_BTD = states.read(ids_BT, mask_BT, (mask_BT.cumsum(1) - 1).clamp_(min=0), None)
        m = torch.arange(len(rows)).repeat_interleave(length_R[rows])
        column = torch.cat([torch.arange(length) for length in length_R[rows].tolist()])
        at = (m * ids_BT.shape[1] + start_R[rows][m] - 1 + column).to(states.device)
        yield rows[m], column, output_BT.flatten(0, 1)[at], hidden_BTD.flatten(0, 1)[at]


def _passes(length_R: Tensor, most: int) -> list[Tensor]:
    """Sort rows by length and cut them into passes, so that padding plus the cost of the passes is least."""
    order = length_R.argsort(stable=True)
    length = length_R[order].tolist()
    # cost[k][n] is the cost of the n shortest rows in k passes; each pass is as wide as its longest row.
    cost = [[0.0] + [float("inf")] * len(length)]
    cut: list[list[int]] = []
    for _ in range(min(most, len(length))):
        row, cuts = [0.0], [0]
        for n in range(1, len(length) + 1):
            begin = min(range(n), key=lambda b: cost[-1][b] + (n - b) * length[n - 1])
            row.append(cost[-1][begin] + (n - begin) * length[n - 1] + _PASS_TOKENS)
            cuts.append(begin)
        cost.append(row)
        cut.append(cuts)
    ends = []
    end, k = len(length), min(range(len(cut)), key=lambda k: cost[k + 1][-1], default=-1)
    while end:
        begin = cut[k][end]
        ends.append(order[begin:end])
        end, k = begin, k - 1
    return ends[::-1]


def _padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return padded ids and their mask (int64, 1 at real tokens)."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        span = slice(longest - len(row), longest) if left else slice(len(row))
        ids[i, span] = torch.tensor([*row])
        mask[i, span] = 1
    return ids.to(device), mask.to(device)


def _repeated(cache: Any, prompt_B: Tensor) -> Any:
    """Repeat a cache for each row; the gradients of rows add up in that of their prompt."""
    repeated = copy.copy(cache)
    repeated.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in repeated.layers:
        # (Indexing with brackets has a slower gradient on the CPU.)
        layer.keys, layer.values = layer.keys.index_select(0, prompt_B), layer.values.index_select(0, prompt_B)
    return repeated


def _banned(allowed_mask_V: Tensor, vocab_size: int, device: torch.device) -> Tensor:
    if allowed_mask_V.dtype != torch.bool or allowed_mask_V.shape != (vocab_size,):
        raise ConfigError(
            f"allowed_mask_V is {allowed_mask_V.dtype} of shape {tuple(allowed_mask_V.shape)}; expected bool of shape "
            f"({vocab_size},)"
        )
    return ~allowed_mask_V.to(device)
