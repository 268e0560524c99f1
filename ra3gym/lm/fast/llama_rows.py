"""Many sequences, each at its own length: `ra3gym.lm.fast.batch_stream.Rows` without the overhead of transformers.

For models of Llama's kind. Keys and values live in buffers, one slot per row, each filled from the left. Rows that are
read together move to the first slots, so that a token costs the arithmetic of the rows that want one, and rows that end
are refilled in place.

Shape suffixes: S slots, M slots in use for this token, B rows of this call, T prompt positions, L buffer positions,
K key-value heads, R query heads per key-value head, E head size, D width, V vocabulary.
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
        self._length_S = np.zeros(num_rows, dtype=np.int64)
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
        ids_BT = torch.tensor([[*prompt] + [0] * (longest - len(prompt)) for prompt in prompts], device=self._device)
        slots = [self._slot_of_row[row] for row in rows]
        last_B = torch.tensor([length - 1 for length in lengths], device=self._device)
        hidden_BD = self._read_prompts(ids_BT, torch.tensor(slots, device=self._device), last_B)
        self._length_S[slots] = lengths
        return self._head(hidden_BD), hidden_BD

    def write(self, rows: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Append one token to each of these rows; logits `(B, V)` and states `(B, D)` behind them."""
        self._gather(rows)
        slots = [self._slot_of_row[row] for row in rows]
        token_M = np.zeros(max(slots) + 1, dtype=np.int64)
        token_M[slots] = tokens
        self._make_room(int(self._length_S[: len(token_M)].max()) + 1)
        # Slots in between whose row was not asked for read a token too: it is behind their end, where nothing sees it,
        # and their next one takes its place.
        hidden_BD = self._read(token_M)[torch.tensor(slots, device=self._device)]
        self._length_S[slots] += 1
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
        # rotate_half(x) * sin equals roll(x, E/2) * (sin with its first half negated).
        half = self._head_size // 2
        self._cos_LE, self._sin_LE = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    def _gather(self, rows: Sequence[int]) -> None:
        """Exchange slots so that these rows stand in the first ones, where that spares enough work."""
        slots = [self._slot_of_row[row] for row in rows]
        if len(rows) > _DENSE * (max(slots) + 1):
            return
        wanted = set(slots)
        holes = [slot for slot in range(len(rows)) if slot not in wanted]
        movers = [slot for slot in slots if slot >= len(rows)]
        here, there = holes + movers, movers + holes
        end = int(self._length_S[here].max())
        for buffer in (*self._keys, *self._values):
            buffer[here, :, :end] = buffer[there, :, :end]  # the right side is a copy
        self._length_S[here] = self._length_S[there]
        for slot, row in zip(here, [self._row_of_slot[slot] for slot in there], strict=True):
            self._row_of_slot[slot], self._slot_of_row[row] = row, slot

    def _read_prompts(self, ids_BT: Tensor, slot_B: Tensor, last_B: Tensor) -> Tensor:
        """Fill slots with whole prompts; the last layer's states at the prompts' last tokens, `(B, D)`."""
        B, T = ids_BT.shape
        kv_heads, size = self._kv_heads, self._head_size
        cos_T1E, sin_T1E = self._cos_LE[:T, None], self._sin_LE[:T, None]
        x_BTD = F.embedding(ids_BT, self._model.model.embed_tokens.weight)
        for layer, keys_SKLE, values_SKLE in zip(self._layers, self._keys, self._values, strict=True):
            qkv = layer.qkv(_rms_norm(x_BTD, layer.norm_1, layer.eps)).view(B, T, -1, size)
            queries_and_key = qkv[:, :, :-kv_heads]
            queries_and_key = queries_and_key * cos_T1E + queries_and_key.roll(size // 2, -1) * sin_T1E
            keys_BKTE = queries_and_key[:, :, -kv_heads:].transpose(1, 2)
            values_BKTE = qkv[:, :, -kv_heads:].transpose(1, 2)
            keys_SKLE[slot_B, :, :T], values_SKLE[slot_B, :, :T] = keys_BKTE, values_BKTE
            query_BHTE = queries_and_key[:, :, :-kv_heads].transpose(1, 2)
            mixed_BHTE = F.scaled_dot_product_attention(
                query_BHTE,
                keys_BKTE,
                values_BKTE,
                is_causal=True,
                scale=self._scale,
                enable_gqa=query_BHTE.shape[1] != kv_heads,
            )
            x_BTD = x_BTD + layer.out(mixed_BHTE.transpose(1, 2).reshape(B, T, -1))
            x_BTD = x_BTD + _feed_forward(x_BTD, layer)
        norm = self._model.model.norm
        last_BD = x_BTD[torch.arange(B, device=self._device), last_B]
        return _rms_norm(last_BD, norm.weight, norm.variance_epsilon)

    def _read(self, token_M: npt.NDArray[np.int64]) -> Tensor:
        """One token in each of the first M slots, at the end of what it holds; the last layer's states `(M, D)`."""
        M, kv_heads, size = len(token_M), self._kv_heads, self._head_size
        end = int(self._length_S[:M].max()) + 1
        # Copied: on the CPU a tensor shares the array's memory, and the lengths go on.
        at_M = torch.from_numpy(self._length_S[:M].copy()).to(self._device)
        slot_M = torch.arange(M, device=self._device)
        cos_M1E, sin_M1E = self._cos_LE[at_M][:, None], self._sin_LE[at_M][:, None]
        weight_VD = self._model.model.embed_tokens.weight
        x_MD = F.embedding(torch.from_numpy(token_M).to(self._device), weight_VD)
        bias_M1L = None
        if end > int(self._length_S[:M].min()) + 1:
            unseen_ML = torch.arange(end, device=self._device) > at_M[:, None]
            bias_M1L = torch.zeros(M, end, dtype=x_MD.dtype, device=self._device)
            bias_M1L = bias_M1L.masked_fill_(unseen_ML, -torch.inf)[:, None]
        for layer, keys_SKLE, values_SKLE in zip(self._layers, self._keys, self._values, strict=True):
            qkv = layer.qkv(_rms_norm(x_MD, layer.norm_1, layer.eps)).view(M, -1, size)
            queries_and_key = qkv[:, :-kv_heads]
            queries_and_key = queries_and_key * cos_M1E + queries_and_key.roll(size // 2, -1) * sin_M1E
            keys_SKLE[slot_M, :, at_M] = queries_and_key[:, -kv_heads:]
            values_SKLE[slot_M, :, at_M] = qkv[:, -kv_heads:]
            query = queries_and_key[:, :-kv_heads].reshape(M * kv_heads, -1, size)
            keys = keys_SKLE[:M].view(M * kv_heads, -1, size)[:, :end]
            values = values_SKLE[:M].view(M * kv_heads, -1, size)[:, :end]
            scores = torch.bmm(query, keys.transpose(1, 2)).mul_(self._scale)
            if bias_M1L is not None:
                scores.view(M, -1, end).add_(bias_M1L)
            mixed = torch.bmm(torch.softmax(scores, dim=-1), values).view(M, -1)
            x_MD = x_MD + layer.out(mixed)
            x_MD = x_MD + _feed_forward(x_MD, layer)
        norm = self._model.model.norm
        return _rms_norm(x_MD, norm.weight, norm.variance_epsilon)


def _feed_forward(x: Tensor, layer: _DecoderLayer) -> Tensor:
    """What a layer's second half adds to `x`, of shape `(..., D)`."""
    gate, up = layer.gate_up(_rms_norm(x, layer.norm_2, layer.eps)).chunk(2, dim=-1)
    return layer.down(F.silu(gate) * up)
