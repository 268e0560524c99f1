"""Many sequences, each at its own length: `ra3gym.lm.fast.batch_stream.Rows` without the overhead of transformers.

For models of Llama's kind. Keys and values live in buffers, one slot per row, each filled from the left. Rows that are
read together move to the first slots, so that a token costs the arithmetic of the rows that want one, and rows that end
are refilled in place.

Shape letters: see CONTRIBUTING.md (E rows, one for each environment, and as many slots; B rows or slots of a call).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym.lm.fast.llama import _DecoderLayer, _rms_norm, head_size
from ra3gym.lm.fast.packed_linear import PackedLinear

_DENSE = 0.8
"""Rows move to the first slots once at most this share of the slots up to the last of them is wanted."""


class LlamaRows:
    """`ra3gym.lm.fast.batch_stream.Rows` for models that `llama.supports`; weights are read here, once."""

    def __init__(self, model: Any, num_rows: int) -> None:
        self._model, self._device = model, model.device
        self._layers = [_DecoderLayer(layer, pack=True) for layer in model.model.layers]
        self._head = PackedLinear(model.lm_head.weight)
        config = model.config
        self._kv_heads, self._head_size = config.num_key_value_heads, head_size(model)
        self._row_of_slot = list(range(num_rows))
        self._slot_of_row = list(range(num_rows))
        self._length_E = np.zeros(num_rows, dtype=np.int64)
        self._scale = self._head_size**-0.5
        # Zeros, as a NaN would come through a mask: its weight of 0 times NaN is NaN.
        shape = (num_rows, self._kv_heads, 64, self._head_size)
        self._keys = [torch.zeros(shape, dtype=model.dtype, device=self._device) for _ in self._layers]
        self._values = [keys.clone() for keys in self._keys]
        self._rotate(64)

    def begin(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Forget these rows and read their prompts, all in one pass; next-token logits `(B, V)`, states `(B, D)`."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        self._make_room(longest)
        # Padded on the right: what stands behind a prompt is seen by nothing ahead of it, and is written over later.
        ids_BL = torch.tensor([[*prompt] + [0] * (longest - len(prompt)) for prompt in prompts], device=self._device)
        slots = [self._slot_of_row[row] for row in rows]
        last_B = torch.tensor([length - 1 for length in lengths], device=self._device)
        hidden_BD = self._read_prompts(ids_BL, torch.tensor(slots, device=self._device), last_B)
        self._length_E[slots] = lengths
        return self._head(hidden_BD), hidden_BD

    def write(self, rows: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Append one token to each of these rows; logits `(B, V)` and states `(B, D)` behind them."""
        self._gather(rows)
        slots = [self._slot_of_row[row] for row in rows]
        token_B = np.zeros(max(slots) + 1, dtype=np.int64)
        token_B[slots] = tokens
        self._make_room(int(self._length_E[: len(token_B)].max()) + 1)
        # Slots in between whose row was not asked for read a token too: it is behind their end, where nothing sees it,
        # and their next one takes its place.
        hidden_BD = self._read(token_B)[torch.tensor(slots, device=self._device)]
        self._length_E[slots] += 1
        return self._head(hidden_BD), hidden_BD

    def _make_room(self, positions: int) -> None:
        """Buffers, and rotations, for so many positions; buffers grow by half at least."""
        have = self._keys[0].shape[2]
        if positions > have:
            size = max(positions, have * 3 // 2)
            self._keys = [F.pad(buffer, (0, 0, 0, size - have)) for buffer in self._keys]
            self._values = [F.pad(buffer, (0, 0, 0, size - have)) for buffer in self._values]
            self._rotate(size)

    def _rotate(self, size: int) -> None:
        """Rotations of so many positions."""
        cos, sin = self._model.model.rotary_emb(self._keys[0], torch.arange(size, device=self._device)[None])
        # rotate_half(x) * sin equals roll(x, I/2) * (sin with its first half negated).
        half = self._head_size // 2
        self._cos_XI, self._sin_XI = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    def _gather(self, rows: Sequence[int]) -> None:
        """Exchange slots so that these rows stand in the first ones, where that spares enough work."""
        slots = [self._slot_of_row[row] for row in rows]
        if len(rows) > _DENSE * (max(slots) + 1):
            return
        wanted = set(slots)
        holes = [slot for slot in range(len(rows)) if slot not in wanted]
        movers = [slot for slot in slots if slot >= len(rows)]
        here, there = holes + movers, movers + holes
        end = int(self._length_E[here].max())
        for buffer in (*self._keys, *self._values):
            buffer[here, :, :end] = buffer[there, :, :end]  # the right side is a copy
        self._length_E[here] = self._length_E[there]
        for slot, row in zip(here, [self._row_of_slot[slot] for slot in there], strict=True):
            self._row_of_slot[slot], self._slot_of_row[row] = row, slot

    def _read_prompts(self, ids_BL: Tensor, slot_B: Tensor, last_B: Tensor) -> Tensor:
        """Fill slots with whole prompts; the last layer's states at the prompts' last tokens, `(B, D)`."""
        B, L = ids_BL.shape
        kv_heads, size = self._kv_heads, self._head_size
        cos_L1I, sin_L1I = self._cos_XI[:L, None], self._sin_XI[:L, None]
        x_BLD = F.embedding(ids_BL, self._model.model.embed_tokens.weight)
        for layer, keys_EJXI, values_EJXI in zip(self._layers, self._keys, self._values, strict=True):
            qkv = layer.qkv(_rms_norm(x_BLD, layer.norm_1, layer.eps)).view(B, L, -1, size)
            queries_and_key = qkv[:, :, :-kv_heads]
            queries_and_key = queries_and_key * cos_L1I + queries_and_key.roll(size // 2, -1) * sin_L1I
            keys_BJLI = queries_and_key[:, :, -kv_heads:].transpose(1, 2)
            values_BJLI = qkv[:, :, -kv_heads:].transpose(1, 2)
            keys_EJXI[slot_B, :, :L], values_EJXI[slot_B, :, :L] = keys_BJLI, values_BJLI
            query_BHLI = queries_and_key[:, :, :-kv_heads].transpose(1, 2)
            mixed_BHLI = F.scaled_dot_product_attention(
                query_BHLI,
                keys_BJLI,
                values_BJLI,
                is_causal=True,
                scale=self._scale,
                enable_gqa=query_BHLI.shape[1] != kv_heads,
            )
            x_BLD = x_BLD + layer.out(mixed_BHLI.transpose(1, 2).reshape(B, L, -1))
            x_BLD = x_BLD + _feed_forward(x_BLD, layer)
        norm = self._model.model.norm
        last_BD = x_BLD[torch.arange(B, device=self._device), last_B]
        return _rms_norm(last_BD, norm.weight, norm.variance_epsilon)

    def _read(self, token_B: npt.NDArray[np.int64]) -> Tensor:
        """One token in each of the first B slots, at the end of what it holds; the last layer's states `(B, D)`."""
        B, kv_heads, size = len(token_B), self._kv_heads, self._head_size
        end = int(self._length_E[:B].max()) + 1
        # Copied: on the CPU a tensor shares the array's memory, and the lengths go on.
        at_B = torch.from_numpy(self._length_E[:B].copy()).to(self._device)
        slot_B = torch.arange(B, device=self._device)
        cos_B1I, sin_B1I = self._cos_XI[at_B][:, None], self._sin_XI[at_B][:, None]
        weight_VD = self._model.model.embed_tokens.weight
        x_BD = F.embedding(torch.from_numpy(token_B).to(self._device), weight_VD)
        bias_B1X = None
        if end > int(self._length_E[:B].min()) + 1:
            unseen_BX = torch.arange(end, device=self._device) > at_B[:, None]
            bias_B1X = torch.zeros(B, end, dtype=x_BD.dtype, device=self._device)
            bias_B1X = bias_B1X.masked_fill_(unseen_BX, -torch.inf)[:, None]
        for layer, keys_EJXI, values_EJXI in zip(self._layers, self._keys, self._values, strict=True):
            qkv = layer.qkv(_rms_norm(x_BD, layer.norm_1, layer.eps)).view(B, -1, size)
            queries_and_key = qkv[:, :-kv_heads]
            queries_and_key = queries_and_key * cos_B1I + queries_and_key.roll(size // 2, -1) * sin_B1I
            keys_EJXI[slot_B, :, at_B] = queries_and_key[:, -kv_heads:]
            values_EJXI[slot_B, :, at_B] = qkv[:, -kv_heads:]
            query = queries_and_key[:, :-kv_heads].reshape(B * kv_heads, -1, size)
            keys = keys_EJXI[:B].view(B * kv_heads, -1, size)[:, :end]
            values = values_EJXI[:B].view(B * kv_heads, -1, size)[:, :end]
            scores = torch.bmm(query, keys.transpose(1, 2)).mul_(self._scale)
            if bias_B1X is not None:
                scores.view(B, -1, end).add_(bias_B1X)
            mixed = torch.bmm(torch.softmax(scores, dim=-1), values).view(B, -1)
            x_BD = x_BD + layer.out(mixed)
            x_BD = x_BD + _feed_forward(x_BD, layer)
        norm = self._model.model.norm
        return _rms_norm(x_BD, norm.weight, norm.variance_epsilon)


def _feed_forward(x: Tensor, layer: _DecoderLayer) -> Tensor:
    """What a layer's second half adds to `x`, of shape `(..., D)`."""
    gate, up = layer.gate_up(_rms_norm(x, layer.norm_2, layer.eps)).chunk(2, dim=-1)
    return layer.down(F.silu(gate) * up)
