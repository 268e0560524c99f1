"""A lean decoder for models of Llama's kind: the same numbers as transformers, without its overhead per call.

For a model of 0.1M parameters that overhead outweighs the arithmetic. The prompts go through the model's own forward
pass. After that, keys and values are in buffers made once, projections that share an input are one product, and the
keys of a prompt are read once for all rows of its group. (For whole sequences, as in training, a forward pass of our
own gained nothing measurable.)

Shape letters: see CONTRIBUTING.md (B rows still in the batch, G = H / J query heads of one key-value head).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ra3gym.lm.fast.llama_layers import LlamaLayers

_PACK_FROM = 16
"""From so many new tokens on, laying out the weights anew pays for itself."""


class LlamaDecoder:
    """`ra3gym.lm.sampling.Decoder` for models that `llama_layers.supports` accepts.

    Each prompt is held once. The rows of a group multiply with the keys of their prompt in one product, and each row
    with its own keys in another; one softmax covers both. With one row per prompt, the row's own keys begin with those
    of the prompt.
    """

    logits_BV: Tensor

    def __init__(self, model: Any, ids_PL: Tensor, mask_PL: Tensor, group_size: int, max_new_tokens: int) -> None:
        output = model(
            input_ids=ids_PL,
            attention_mask=mask_PL,
            position_ids=(mask_PL.cumsum(1) - 1).clamp_(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self._llama = LlamaLayers(model, pack=max_new_tokens >= _PACK_FROM)
        dtype = self._llama.dtype
        self.logits_BV = output.logits[:, -1].to(dtype).repeat_interleave(group_size, 0)
        self._position_B = mask_PL.sum(1).repeat_interleave(group_size)
        self._cos_XI, self._sin_XI = self._llama.rotations(int(self._position_B.max()) + max_new_tokens)

        num_prompts, prompt_length = ids_PL.shape
        self._rows = num_prompts * group_size
        # Autocast may leave keys in float32 that its products would round: rounded once, they give the same products.
        cached = [(layer.keys.to(dtype), layer.values.to(dtype)) for layer in output.past_key_values.layers]
        bias_PL: Tensor | None = None
        if not bool(mask_PL.all()):
            bias_PL = torch.zeros(mask_PL.shape, dtype=dtype, device=mask_PL.device)
            bias_PL.masked_fill_(mask_PL == 0, -torch.inf)
        self._prompts = _SharedPrompts(cached, bias_PL, group_size) if group_size > 1 else None
        self._bias_B1L = bias_PL[:, None] if bias_PL is not None and group_size == 1 else None
        self._filled = 0 if group_size > 1 else prompt_length
        size = (self._rows, self._llama.kv_heads, self._filled + max_new_tokens, self._llama.head_size)
        self._keys = [keys.new_empty(size) for keys, _ in cached]
        self._values = [values.new_empty(size) for _, values in cached]
        if self._filled:
            for own_keys, own_values, (keys, values) in zip(self._keys, self._values, cached, strict=True):
                own_keys[:, :, : self._filled], own_values[:, :, : self._filled] = keys, values

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self._rows = len(rows)
        for buffers in (self._keys, self._values):
            for i, buffer in enumerate(buffers):
                kept = buffer.new_empty((len(rows), *buffer.shape[1:]))
                kept[:, :, : self._filled] = buffer[:, :, : self._filled].index_select(0, rows)
                buffers[i] = kept
        self._position_B = self._position_B[rows]
        if self._prompts is not None:
            self._prompts.keep(rows)
        if self._bias_B1L is not None:
            self._bias_B1L = self._bias_B1L[rows]

    def read(self, token_B: Tensor) -> None:
        """Append one token to each row."""
        with self._llama.precision():
            self._step(token_B)
        self._position_B = self._position_B + 1
        self._filled += 1

    def _step(self, token_B: Tensor) -> None:
        """Store the keys and values of these tokens, and set `logits_BV` to what follows them."""
        llama, kv_heads = self._llama, self._llama.kv_heads
        cos_B1I = self._cos_XI[self._position_B][:, None]
        sin_B1I = self._sin_XI[self._position_B][:, None]
        x_BD = llama.embed(token_B)
        for i, layer in enumerate(llama.layers):
            qkv = layer.queries_keys_values(x_BD).view(self._rows, -1, llama.head_size)
            queries_and_key = llama.rotated(qkv[:, :-kv_heads], cos_B1I, sin_B1I)
            self._store(i, queries_and_key[:, -kv_heads:], qkv[:, -kv_heads:])
            x_BD = x_BD + layer.out(self._attend(i, queries_and_key[:, :-kv_heads]))
            x_BD = x_BD + layer.feed_forward(x_BD)
        self.logits_BV = llama.logits(llama.final_states(x_BD))

    def _store(self, layer: int, key_BJI: Tensor, value_BJI: Tensor) -> None:
        """Append a key and a value to each row."""
        self._keys[layer][:, :, self._filled] = key_BJI
        self._values[layer][:, :, self._filled] = value_BJI

    def _own(self, layer: int) -> tuple[Tensor, Tensor]:
        """The rows' own keys and values up to this token, two of `(B, J, length, I)`."""
        end = self._filled + 1
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def _hide(self, own_BHX: Tensor) -> None:
        """Hide, among the rows' own keys, the padding before their prompts."""
        if self._bias_B1L is not None:
            own_BHX[:, :, : self._bias_B1L.shape[2]].add_(self._bias_B1L)

    def _attend(self, layer: int, query_BHI: Tensor) -> Tensor:
        """What the rows read in their prompts and in their own keys up to this token, `(B, H * I)`."""
        rows, kv_heads, size = self._rows, self._llama.kv_heads, self._llama.head_size
        query = (query_BHI * size**-0.5).reshape(rows * kv_heads, -1, size)
        keys, values = (buffer.flatten(0, 1) for buffer in self._own(layer))
        own_BHX = torch.bmm(query, keys.transpose(1, 2)).view(rows, -1, keys.shape[1])
        self._hide(own_BHX)
        if self._prompts is None:
            return torch.bmm(_softmax(own_BHX).view(*query.shape[:2], -1), values).view(rows, -1)
        shared_BHL = self._prompts.scores(layer, query.view(rows, kv_heads, -1, size))
        weights = _softmax(torch.cat([shared_BHL, own_BHX], dim=2))
        prompt_length = shared_BHL.shape[2]
        mixed = torch.bmm(weights.view(*query.shape[:2], -1)[:, :, prompt_length:], values).view(rows, -1)
        return mixed + self._prompts.mix(layer, weights[:, :, :prompt_length])


class _SharedPrompts:
    """Keys and values of prompts, each held once for all rows of its group.

    The rows fill a grid that has a line of slots for each prompt. Slots are empty where a group has fewer rows left.
    """

    def __init__(self, cached: list[tuple[Tensor, Tensor]], bias_PL: Tensor | None, group_size: int) -> None:
        self._cached, self._bias_PL = cached, bias_PL
        self._lines, self._kv_heads = cached[0][0].shape[:2]
        self._group_size = group_size
        device = cached[0][0].device
        self._prompt_B = torch.arange(self._lines, device=device).repeat_interleave(group_size)
        self._slot_B: Tensor | None = None
        """The slot of each row; `None` where the rows fill the grid in order."""

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows, and without the prompts that have none of them."""
        left, prompt_B, count = self._prompt_B[rows].unique(return_inverse=True, return_counts=True)
        if len(left) < self._lines:
            self._cached = [(keys[left], values[left]) for keys, values in self._cached]
            self._bias_PL = None if self._bias_PL is None else self._bias_PL[left]
        self._prompt_B, self._lines, self._group_size = prompt_B, len(left), int(count.max())
        order = prompt_B.argsort(stable=True)
        rank = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[prompt_B[order]]
        self._slot_B = torch.empty_like(order).index_copy_(0, order, prompt_B[order] * self._group_size + rank)
        if torch.equal(self._slot_B, torch.arange(self._lines * self._group_size, device=rows.device)):
            self._slot_B = None

    def scores(self, layer: int, query_BJGI: Tensor) -> Tensor:
        """Products of the rows' queries with the prompts' keys, `(B, H, L)`; minus infinity at padding."""
        keys_PJLI = self._cached[layer][0]
        scores = self._from_grid(self._to_grid(query_BJGI) @ keys_PJLI.transpose(2, 3), query_BJGI.shape[2])
        if self._bias_PL is not None:
            scores = scores + self._bias_PL[self._prompt_B][:, None]
        return scores

    def mix(self, layer: int, weights_BHL: Tensor) -> Tensor:
        """The prompts' values under these weights, `(B, H * I)`."""
        values_PJLI = self._cached[layer][1]
        weights_BJGL = weights_BHL.view(len(weights_BHL), self._kv_heads, -1, weights_BHL.shape[2])
        mixed_BHI = self._from_grid(self._to_grid(weights_BJGL) @ values_PJLI, weights_BJGL.shape[2])
        return mixed_BHI.flatten(1)

    def _to_grid(self, rows: Tensor) -> Tensor:
        """`(B, J, G, width)` as `(P, J, slots * G, width)`, 0 in empty slots."""
        if self._slot_B is not None:
            empty = rows.new_zeros((self._lines * self._group_size, *rows.shape[1:]))
            rows = empty.index_copy_(0, self._slot_B, rows)
        return rows.view(self._lines, -1, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _from_grid(self, grid: Tensor, heads: int) -> Tensor:
        """`(P, J, slots * G, width)` as `(B, J * G, width)`, where `heads` is G."""
        grid = grid.view(self._lines, self._kv_heads, self._group_size, heads, -1)
        slots = grid.transpose(1, 2).flatten(0, 1)
        return (slots if self._slot_B is None else slots.index_select(0, self._slot_B)).flatten(1, 2)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax in float32 at least, as transformers takes it for models of lower precision."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)
