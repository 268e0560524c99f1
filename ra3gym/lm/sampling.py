"""Batched sampling from a causal language model, with the log-probability of every sampled token.

Shape letters: see CONTRIBUTING.md (P prompts, G samples of each, R = P * G rows, B rows still in the batch).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym.errors import ConfigError
from ra3gym.lm.caches import WholeTextDecoder, has_row_cache, require_row_cache
from ra3gym.lm.fast.llama_decoder import LlamaDecoder
from ra3gym.lm.fast.llama_graph import GraphedLlamaDecoder, wants_graphs
from ra3gym.lm.fast.llama_layers import supports
from ra3gym.lm.rendering import ForcedRows, ForcedText
from ra3gym.lm.stopping import StopRule

_SHRINK_AT = {"cpu": 0.8}
"""Finished rows leave the batch once at most this share of it is unfinished, by device."""
_SHRINK_AT_ELSEWHERE = 0.5
"""On other devices, where a token takes nearly the same time for fewer rows, and each change needs a new graph."""

_LOOK_EVERY = {"cpu": 1}
"""After how many tokens the number of unfinished rows is read, by device. On a GPU, reading it waits for the device."""
_LOOK_EVERY_ELSEWHERE = 8

_BLOCK = 64
_BLOCKS_FROM = 2048
"""From a vocabulary of this size on, a draw first finds its block of tokens."""


@dataclass(frozen=True)
class Samples:
    """Completions of a batch of prompts; the samples of prompt `p` are the rows `p * G .. p * G + G - 1`.

    Attributes:
        prompt_ids: the P prompts.
        tokens_RT: int64; the padding id after the end. T is the length of the longest completion.
        logp_RT: float32, nats; log-probability under the distribution that was sampled from (after temperature and
            allowed tokens); 0 at tokens that leave forced text unwritten, which belong to the prompt.
        mask_RT: bool, true at real tokens, the end token included.
        finished_R: bool, true where an end token or the stop rule ended the row, false where `max_new_tokens` did.
    """

    prompt_ids: list[list[int]]
    tokens_RT: Tensor
    logp_RT: Tensor
    mask_RT: Tensor
    finished_R: Tensor

    @property
    def group_size(self) -> int:
        """Samples per prompt."""
        return len(self.tokens_RT) // len(self.prompt_ids)

    def completions(self) -> list[list[int]]:
        """Return the R completions as lists of ids, end token included where there is one."""
        lengths = self.mask_RT.sum(1).tolist()
        return [row[:length] for row, length in zip(self.tokens_RT.tolist(), lengths, strict=True)]


class Decoder(Protocol):
    """A model that has read a batch of prompts and continues by one token per row at a time.

    Attributes:
        logits_BV: the next-token logits after all tokens read so far.
    """

    logits_BV: Tensor

    def read(self, token_B: Tensor) -> None:
        """Append one token to each row and update `logits_BV`."""

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows of the batch only."""


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int = 1,
    max_new_tokens: int,
    eos_id: int | Collection[int],
    pad_id: int,
    generator: torch.Generator | Sequence[torch.Generator],
    temperature: float = 1.0,
    allowed_mask_V: Tensor | None = None,
    greedy: bool = False,
    stop: StopRule | None = None,
    forced: ForcedText | None = None,
) -> Samples:
    """Sample `group_size` completions of each prompt.

    A prompt is read once for its whole group. Results depend on the weights, the prompts and the generator only: the
    random numbers of a row do not depend on when other rows finish. Under autocast, products are taken in its type,
    whatever the type of the weights. The model's training mode is restored at the end.

    Args:
        model: any causal language model of transformers. Plain Llama, Qwen2 and Mistral models take a fast path
            (`ra3gym.lm.fast.llama_decoder`), on a GPU as CUDA graphs (`ra3gym.lm.fast.llama_graph`).
        prompts: token ids without padding, at least one each.
        group_size: samples per prompt, the G of GRPO; typically 4 to 16 there.
        max_new_tokens: longest completion, end token included.
        eos_id: the token, or any of several, that ends a completion.
        pad_id: fills rows after their end.
        generator: the source of randomness; its device may differ from the model's. Or one generator for each prompt:
            then the samples of a prompt do not depend on the other prompts.
        temperature: divides the logits; 1 samples from the model itself, below 1 is sharper.
        allowed_mask_V: bool, the only tokens that may be sampled (a pruned action space).
        greedy: take the likeliest token instead; `logp_RT` is still that of the sampling distribution.
        stop: ends rows because of their content. The token after which it does so is the last of its row, as an end
            token is.
        forced: the texts that completions must begin with, where prompts were cut back
            (`ra3gym.lm.rendering.cut_prompt`): first tokens are sampled from those that agree with them.

    Raises:
        ConfigError: an empty prompt, a value out of range, or more tokens than the model has positions.
    """
    prompt_ids = [list(prompt) for prompt in prompts]
    _check(model, prompt_ids, group_size, max_new_tokens, temperature)
    device = next(model.parameters()).device
    num_rows = len(prompt_ids) * group_size
    tokens_RT = torch.full((num_rows, max_new_tokens), pad_id, dtype=torch.int64, device=device)
    logp_RT = torch.zeros((num_rows, max_new_tokens), device=device)
    length_R = torch.zeros(num_rows, dtype=torch.int64, device=device)
    finished_R = torch.zeros(num_rows, dtype=torch.bool, device=device)
    uniform_RT = _uniform(generator, len(prompt_ids), group_size, max_new_tokens).to(device)
    look_every = _LOOK_EVERY.get(device.type, _LOOK_EVERY_ELSEWHERE)
    shrink_at = _SHRINK_AT.get(device.type, _SHRINK_AT_ELSEWHERE)

    was_training = model.training
    model.eval()
    try:
        decoder = read_prompts(model, prompt_ids, group_size, max_new_tokens)
        is_end_V = _end_tokens(eos_id, decoder.logits_BV)
        banned_V = None if allowed_mask_V is None else _banned_tokens(allowed_mask_V, decoder.logits_BV)
        stopper = None if stop is None else _Stopper(stop, num_rows, decoder.logits_BV)
        rows = torch.arange(num_rows, device=device)
        active_B = torch.ones_like(rows, dtype=torch.bool)
        forcing = None if forced is None else forced.rows(group_size)
        length = 0
        for length in range(1, max_new_tokens + 1):
            t = length - 1
            banned = banned_V if forcing is None else _banned_by(forcing, rows, banned_V, decoder.logits_BV)
            prob_BV = distribution(decoder.logits_BV, temperature, banned)
            token_B = prob_BV.argmax(-1) if greedy else inverse_cdf(prob_BV, uniform_RT[rows, t])
            tokens_RT[rows, t] = torch.where(active_B, token_B, pad_id)
            counts_B = active_B if forcing is None else active_B & ~_leaves_forced(forcing, rows, token_B)
            logp_RT[rows, t] = prob_BV.gather(1, token_B[:, None])[:, 0].log().masked_fill(~counts_B, 0.0)
            if forcing is not None and not forcing.waits:
                forcing = None
            length_R[rows] += active_B
            ended_B = is_end_V[token_B] if stopper is None else is_end_V[token_B] | stopper(rows, token_B, active_B)
            ended_B &= active_B
            active_B = active_B & ~ended_B
            finished_R[rows] |= ended_B
            if length == max_new_tokens:
                break
            if length % look_every == 0:
                num_active = int(active_B.sum())
                if num_active == 0:
                    break
                if num_active <= shrink_at * len(rows):
                    kept = active_B.nonzero()[:, 0]
                    decoder.keep(kept)
                    rows, token_B, active_B = rows[kept], token_B[kept], active_B[kept]
            decoder.read(token_B)
    finally:
        model.train(was_training)
    length = int(length_R.max())
    mask_RT = torch.arange(length, device=device) < length_R[:, None]
    return Samples(prompt_ids, tokens_RT[:, :length], logp_RT[:, :length], mask_RT, finished_R)


def _uniform(
    generator: torch.Generator | Sequence[torch.Generator], num_prompts: int, group_size: int, max_new_tokens: int
) -> Tensor:
    """Draw `uniform_RT` in [0, 1), below 1 by more than a rounding step: u times the total mass is below that mass."""
    if isinstance(generator, torch.Generator):
        generators, rows_of_each = [generator], num_prompts * group_size
    else:
        generators, rows_of_each = list(generator), group_size
        if len(generators) != num_prompts:
            raise ConfigError(f"{len(generators)} generators for {num_prompts} prompts: give one, or one for each")
    parts = [torch.rand(rows_of_each, max_new_tokens, generator=g, device=g.device) for g in generators]
    return torch.cat(parts).clamp_(max=1 - 2.0**-23)


class _Stopper:
    """Keeps the tokens of each row on the host and asks the rule where a watched token is the newest."""

    def __init__(self, rule: StopRule, num_rows: int, logits_BV: Tensor) -> None:
        self._rule, self._device = rule, logits_BV.device
        self._watched = frozenset(rule.watched_ids)
        self._written: list[list[int]] = [[] for _ in range(num_rows)]

    def __call__(self, rows: Tensor, token_B: Tensor, active_B: Tensor) -> Tensor:
        """Return `ended_B`, bool; false for rows that are no longer active."""
        ended = []
        for row, token, active in zip(rows.tolist(), token_B.tolist(), active_B.tolist(), strict=True):
            if active:
                self._written[row].append(token)
            ended.append(active and token in self._watched and self._rule.ends(row, self._written[row]))
        return torch.tensor(ended, device=self._device)


def _end_tokens(eos_id: int | Collection[int], logits_BV: Tensor) -> Tensor:
    """Return `is_end_V`, bool."""
    vocab_size = logits_BV.shape[1]
    ids = [eos_id] if isinstance(eos_id, int) else list(eos_id)
    if not ids or not all(0 <= i < vocab_size for i in ids):
        raise ConfigError(f"eos_id={eos_id} must name tokens of the model, 0 to {vocab_size - 1}")
    is_end_V = torch.zeros(vocab_size, dtype=torch.bool, device=logits_BV.device)
    is_end_V[ids] = True
    return is_end_V


def _banned_tokens(allowed_mask_V: Tensor, logits_BV: Tensor) -> Tensor:
    """Return `banned_V`, bool, on the device of the logits."""
    if allowed_mask_V.dtype != torch.bool or allowed_mask_V.shape != logits_BV.shape[1:]:
        raise ConfigError(
            f"allowed_mask_V is {allowed_mask_V.dtype} of shape {tuple(allowed_mask_V.shape)}; "
            f"expected bool of shape ({logits_BV.shape[1]},)"
        )
    if not bool(allowed_mask_V.any()):
        raise ConfigError("allowed_mask_V allows no token")
    return ~allowed_mask_V.to(logits_BV.device)


def _banned_by(forcing: ForcedRows, rows: Tensor, banned_V: Tensor | None, logits_BV: Tensor) -> Tensor:
    """Return `banned_BV`, bool: tokens that do not agree with the forced text of each row, and those of `banned_V`."""
    everything_V = torch.ones(logits_BV.shape[1], dtype=torch.bool, device=logits_BV.device)
    return ~forcing.allowed_BV(rows.tolist(), everything_V if banned_V is None else ~banned_V)


def _leaves_forced(forcing: ForcedRows, rows: Tensor, token_B: Tensor) -> Tensor:
    """Note the newest token of each row; return bool, true where forced text is still to be written."""
    leaves = [forcing.write(row, token) for row, token in zip(rows.tolist(), token_B.tolist(), strict=True)]
    return torch.tensor(leaves, device=token_B.device)


def distribution(logits_BV: Tensor, temperature: float, banned_V: Tensor | None) -> Tensor:
    """Return the next-token probabilities `prob_BV` in float32; 0 for banned tokens."""
    logits_BV = logits_BV.float()
    if temperature != 1.0:
        logits_BV = logits_BV / temperature
    if banned_V is not None:
        logits_BV = logits_BV.masked_fill(banned_V, -torch.inf)
    return torch.softmax(logits_BV, dim=-1)


def inverse_cdf(prob_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Draw one token per row, never one of probability 0; any token where a row's probabilities are NaN.

    This is much faster on the CPU than `torch.multinomial`. For a large vocabulary, probabilities are summed by blocks,
    and only the block of the draw is cumulated: a cumulative sum is serial, a sum is not.
    """
    if prob_BV.shape[1] < _BLOCKS_FROM:
        cdf_BV = prob_BV.cumsum(-1)
        token_B1 = torch.searchsorted(cdf_BV, (uniform_B * cdf_BV[:, -1])[:, None], right=True)
        return token_B1[:, 0].clamp_(max=prob_BV.shape[1] - 1)
    block_probs = F.pad(prob_BV, (0, -prob_BV.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
    block_cdf = block_probs.sum(-1).cumsum(-1)
    point_B1 = (uniform_B * block_cdf[:, -1])[:, None]
    block_B1 = torch.searchsorted(block_cdf, point_B1, right=True).clamp_(max=block_cdf.shape[1] - 1)
    before_B1 = F.pad(block_cdf, (1, 0)).gather(1, block_B1)
    cdf_inside = block_probs[torch.arange(len(prob_BV), device=prob_BV.device), block_B1[:, 0]].cumsum(-1)
    # The two sums of a block may differ in their last bit: keep the draw below the second one too.
    inside_B1 = torch.minimum(point_B1 - before_B1, torch.nextafter(cdf_inside[:, -1:], torch.zeros_like(point_B1)))
    token_B1 = block_B1 * _BLOCK + torch.searchsorted(cdf_inside, inside_B1, right=True)
    return token_B1[:, 0].clamp_(max=prob_BV.shape[1] - 1)


def read_prompts(model: Any, prompt_ids: Sequence[Sequence[int]], group_size: int, max_new_tokens: int) -> Decoder:
    """Read prompts in one pass, for `group_size` rows each; the caches have room for `max_new_tokens` more.

    Call it, like the decoder's `read`, without gradients and with the model in evaluation mode.
    """
    if not has_row_cache(model):
        return WholeTextDecoder(model, prompt_ids, group_size)
    ids_PL, mask_PL = _left_pad(model, prompt_ids)
    kind: type[CacheDecoder | LlamaDecoder] = CacheDecoder
    if supports(model):
        kind = GraphedLlamaDecoder if wants_graphs(ids_PL.device, max_new_tokens) else LlamaDecoder
    return kind(model, ids_PL, mask_PL, group_size, max_new_tokens)


def _left_pad(model: Any, prompt_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return `ids_PL` and `mask_PL` (int64, 1 at real tokens); ids at padding are never seen."""
    longest = max(map(len, prompt_ids))
    ids = [[0] * (longest - len(prompt)) + [*prompt] for prompt in prompt_ids]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompt_ids]
    device = next(model.parameters()).device
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class CacheDecoder:
    """A `Decoder` for any causal language model with keys and values, through its own forward pass and cache.

    Raises:
        ModelError: the model keeps a recurrent state.
    """

    def __init__(self, model: Any, ids_PL: Tensor, mask_PL: Tensor, group_size: int, max_new_tokens: int) -> None:
        require_row_cache(model, "sampling with a cache")
        output = model(
            input_ids=ids_PL,
            attention_mask=mask_PL,
            position_ids=(mask_PL.cumsum(1) - 1).clamp_(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self._model = model
        self._cache = output.past_key_values
        self._cache.batch_repeat_interleave(group_size)
        self._mask_BX = mask_PL.repeat_interleave(group_size, 0)
        self.logits_BV: Tensor = output.logits[:, -1].repeat_interleave(group_size, 0)

    def read(self, token_B: Tensor) -> None:
        """Append one token to each row."""
        self._read(token_B[:, None], torch.ones_like(token_B)[:, None])

    def append(self, tokens: Sequence[Sequence[int]]) -> None:
        """Append several tokens to each row, or none; without tokens, the logits of a row do not change."""
        if any(tokens):
            # Padded on the left, so that the last column holds the last token of each row that has any.
            before = self.logits_BV
            ids_BT, real_BT = _left_pad(self._model, tokens)
            self._read(ids_BT, real_BT)
            self.logits_BV = torch.where(real_BT[:, -1:].bool(), self.logits_BV, before)

    def _read(self, ids_BT: Tensor, real_BT: Tensor) -> None:
        self._mask_BX = torch.cat([self._mask_BX, real_BT], dim=1)
        output = self._model(
            input_ids=ids_BT,
            attention_mask=self._mask_BX,
            position_ids=(self._mask_BX.cumsum(1) - 1)[:, -ids_BT.shape[1] :].clamp_(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_BV = output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self._cache.batch_select_indices(rows)
        self._mask_BX = self._mask_BX[rows]


def _check(
    model: Any,
    prompt_ids: list[list[int]],
    group_size: int,
    max_new_tokens: int,
    temperature: float,
) -> None:
    if not prompt_ids or not all(prompt_ids):
        raise ConfigError("generate needs at least one prompt, and at least one token in each; see encode_prompt")
    if group_size < 1 or max_new_tokens < 1:
        raise ConfigError(f"group_size={group_size} and max_new_tokens={max_new_tokens} must be at least 1")
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature} must be positive; use greedy=True for the likeliest token")
    positions = getattr(model.config, "max_position_embeddings", None)
    needed = max(map(len, prompt_ids)) + max_new_tokens
    if positions is not None and needed > positions:
        raise ConfigError(
            f"the longest prompt and max_new_tokens={max_new_tokens} need {needed} positions, but the model has "
            f"{positions}; shorten one of them"
        )
