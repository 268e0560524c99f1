"""Many growing token sequences under one model: what vector environments step through, in one pass per token.

Shape letters: see CONTRIBUTING.md (E rows, one for each environment; B rows of this call).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym.errors import ConfigError
from ra3gym.lm.fast.llama_layers import supports
from ra3gym.lm.fast.llama_rows import LlamaRows
from ra3gym.lm.model import LoadedModel
from ra3gym.lm.stream import TokenStream
from ra3gym.lm.tokenizer import decode_completion


class Rows(Protocol):
    """The cache of E sequences that grow, end and begin anew independently."""

    def begin(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Forget these rows and read their prompts; return next-token logits `(B, V)` and last states `(B, D)`."""

    def write(self, rows: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Append one token to each of these rows; return logits and states after it. Other rows do not change."""


class BatchStream:
    """E rows, each a prompt and the tokens written after it: a `TokenStream` in batches.

    Any rows may write together, and any may begin anew, while the others wait. A row's numbers depend on its own tokens
    only, up to the rounding of a batch's arithmetic. Llama models take a fast path (`llama_rows`). Others share one
    cache of transformers, or run row by row if their layers do not keep plain keys and values.

    Args:
        loaded: any causal language model of transformers; it is only read, and must not change while this is in use.
        prompts: one per row, at least one token each.

    Attributes:
        logits_EV: next-token logits as the model computes them, on its device; later calls overwrite them.
        hidden_ED: the last layer's states at the last tokens, as the output layer reads them; likewise.

    Raises:
        ConfigError: an empty prompt, or no row.
    """

    logits_EV: Tensor
    hidden_ED: Tensor

    def __init__(self, loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> None:
        if not prompts:
            raise ConfigError("a batch stream needs a prompt for each row, and at least one row")
        self._loaded = loaded
        self.prompt_ids: list[list[int]] = [[] for _ in prompts]
        self.written: list[list[int]] = [[] for _ in prompts]
        self._rows = _make_rows(loaded, len(prompts))
        self.begin(range(len(prompts)), prompts)

    @torch.inference_mode()
    def begin(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Forget these rows and read new prompts in them, in one pass."""
        if not all(len(prompt) for prompt in prompts):
            raise ConfigError("a batch stream needs prompts of at least one token; see encode_prompt")
        for row, prompt in zip(rows, prompts, strict=True):
            self.prompt_ids[row], self.written[row] = list(prompt), []
        self._put(rows, *self._rows.begin(rows, prompts))

    def write(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Append one token to each of these rows, and read it, in one pass."""
        self.append(rows, tokens)
        self.read(rows)

    def append(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Add one token to each of these rows; call `read` with the same rows next."""
        for row, token in zip(rows, tokens, strict=True):
            self.written[row].append(token)

    @torch.inference_mode()
    def read(self, rows: Sequence[int]) -> None:
        """Read the last token of each of these rows, in one pass."""
        self._put(rows, *self._rows.write(rows, [self.written[row][-1] for row in rows]))

    def logits_BV(self, rows: Sequence[int]) -> Tensor:
        """Return the next-token logits of these rows; all rows in order are not copied."""
        return self.logits_EV if self._are_all(rows) else self.logits_EV[list(rows)]

    def hidden_BD(self, rows: Sequence[int]) -> Tensor:
        """Return the last states of these rows, likewise."""
        return self.hidden_ED if self._are_all(rows) else self.hidden_ED[list(rows)]

    def _are_all(self, rows: Sequence[int]) -> bool:
        return len(rows) == len(self.written) and list(rows) == list(range(len(rows)))

    def text(self, row: int) -> str:
        """Return the written tokens of a row as text, special tokens included."""
        return decode_completion(self._loaded.tokenizer, self.prompt_ids[row], self.written[row])

    def _put(self, rows: Sequence[int], logits_BV: Tensor, hidden_BD: Tensor) -> None:
        if self._are_all(rows):
            self.logits_EV, self.hidden_ED = logits_BV, hidden_BD
        else:
            at = torch.tensor(rows, device=logits_BV.device)
            self.logits_EV[at], self.hidden_ED[at] = logits_BV.to(self.logits_EV.dtype), hidden_BD


@torch.inference_mode()
def draw(
    logits_BV: Tensor, uniform_B: Sequence[float] | None, *, temperature: float = 1.0, allowed_V: Tensor | None = None
) -> list[int]:
    """Draw one token per row.

    Args:
        logits_BV: of any precision; the distribution is computed in float64.
        uniform_B: one number in [0, 1) per row, which decides its token (inverse distribution function); `None` for the
            likeliest token.
        temperature: divides the logits; above 0.
        allowed_V: bool, the only tokens that may be drawn.
    """
    if allowed_V is not None:
        logits_BV = logits_BV.masked_fill(~allowed_V, -torch.inf)
    if uniform_B is None:
        return [int(token) for token in logits_BV.argmax(-1).tolist()]
    scaled_BV = logits_BV if temperature == 1.0 else logits_BV.double() / temperature
    cdf_BV = torch.softmax(scaled_BV, dim=-1, dtype=torch.float64).cumsum_(-1)
    # Below 1 by more than a rounding step, so that the product stays below the total.
    uniform_B1 = torch.tensor(uniform_B, dtype=torch.float64, device=cdf_BV.device).clamp_(max=1 - 2.0**-40)[:, None]
    token_B1 = torch.searchsorted(cdf_BV, uniform_B1 * cdf_BV[:, -1:], right=True)
    return [int(token) for token in token_B1[:, 0].tolist()]


class CacheRows:
    """`Rows` over one cache of transformers whose layers keep plain keys and values.

    All rows share the columns of the cache. A row that does not write has a gap in the column that others fill. The
    mask hides gaps; rows are moved together when gaps take more room than tokens. The end of a prompt is in the last
    column.
    """

    def __init__(self, model: Any, num_rows: int) -> None:
        self._model = model
        self._num_rows = num_rows
        self._cache: Any = None
        self._mask_EX = torch.zeros(num_rows, 0, dtype=torch.int64, device=model.device)

    def begin(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Forget these rows and read their prompts, padded on the left, in one pass."""
        longest, device = max(map(len, prompts)), self._mask_EX.device
        ids_BL = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=device)
        mask_BL = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        output = self._model(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            position_ids=(mask_BL.cumsum(1) - 1).clamp_(min=0),
            use_cache=True,
            output_hidden_states=True,
            logits_to_keep=1,
        )
        if len(rows) == self._num_rows:
            order = torch.tensor(sorted(range(len(rows)), key=lambda i: rows[i]), device=device)
            self._cache, self._mask_EX = output.past_key_values, mask_BL[order]
            self._cache.batch_select_indices(order)
        else:
            self._insert(torch.tensor(rows, device=device), output.past_key_values, mask_BL)
        return output.logits[:, -1], output.hidden_states[-1][:, -1]

    def write(self, rows: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Add one column: a token in these rows, a gap in the others."""
        at = torch.tensor(rows, device=self._mask_EX.device)
        column_E1 = torch.zeros_like(self._mask_EX[:, :1])
        column_E1[at] = 1
        ids_E1 = torch.zeros_like(column_E1)
        ids_E1[at, 0] = torch.tensor(tokens, device=at.device)
        position_E1 = self._mask_EX.sum(1, keepdim=True)
        self._mask_EX = torch.cat([self._mask_EX, column_E1], dim=1)
        output = self._model(
            input_ids=ids_E1,
            attention_mask=self._mask_EX,
            position_ids=position_E1,
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=True,
        )
        self._close_up()
        return output.logits[at, -1], output.hidden_states[-1][at, -1]

    def _insert(self, at: Tensor, fresh: Any, mask_BL: Tensor) -> None:
        """Put the prompts' columns at the right end of these rows, with gaps before them."""
        columns, longest = self._mask_EX.shape[1], mask_BL.shape[1]
        size = max(columns, longest)
        self._mask_EX = F.pad(self._mask_EX, (size - columns, 0))
        self._mask_EX[at] = F.pad(mask_BL, (size - longest, 0))
        for layer, new in zip(self._cache.layers, fresh.layers, strict=True):
            for name in ("keys", "values"):
                buffer = F.pad(getattr(layer, name), (0, 0, size - columns, 0))
                buffer[at] = F.pad(getattr(new, name), (0, 0, size - longest, 0)).to(buffer.dtype)
                setattr(layer, name, buffer)

    def _close_up(self) -> None:
        """Move the tokens of each row to the right, over its gaps, if gaps outnumber the tokens of the longest row."""
        longest = int(self._mask_EX.sum(1).max())
        if self._mask_EX.shape[1] <= 2 * longest + 16:
            return
        order_EX = self._mask_EX.argsort(dim=1, stable=True)[:, -longest:]
        self._mask_EX = self._mask_EX.gather(1, order_EX)
        for layer in self._cache.layers:
            for name in ("keys", "values"):
                buffer = getattr(layer, name)
                index = order_EX[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
                setattr(layer, name, buffer.gather(2, index))


class SeparateRows:
    """`Rows` for every other model: each row has a cache, and a pass, of its own."""

    def __init__(self, loaded: LoadedModel, num_rows: int) -> None:
        self._loaded = loaded
        self._streams: list[TokenStream | None] = [None] * num_rows

    def begin(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Forget these rows and read their prompts."""
        for row, prompt in zip(rows, prompts, strict=True):
            self._streams[row] = TokenStream(self._loaded, prompt)
        return self._look(rows)

    def write(self, rows: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Append one token to each of these rows."""
        for row, token in zip(rows, tokens, strict=True):
            stream = self._streams[row]
            assert stream is not None, "every row begins before its first token"
            stream.write(token)
        return self._look(rows)

    def _look(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities as logits, from which they differ by a constant, and states."""
        streams = [stream for row in rows if (stream := self._streams[row]) is not None]
        device = self._loaded.model.device
        return torch.stack([s.logp_V for s in streams]).to(device), torch.stack([s.hidden_D for s in streams]).to(
            device
        )


def _make_rows(loaded: LoadedModel, num_rows: int) -> Rows:
    model: Any = loaded.model
    if supports(model):
        return LlamaRows(model, num_rows)
    return CacheRows(model, num_rows) if _keeps_plain_layers(model) else SeparateRows(loaded, num_rows)


@torch.inference_mode()
def _keeps_plain_layers(model: Any) -> bool:
    """Whether all layers of the model's cache are plain keys and values; found by a pass over one token."""
    from transformers.cache_utils import DynamicLayer

    output = model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=True)
    layers = getattr(getattr(output, "past_key_values", None), "layers", None)
    return layers is not None and all(type(layer) is DynamicLayer for layer in layers)
