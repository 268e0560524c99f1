"""Many sequences, each at its own length: `ra3gym.lm.fast.batch_stream.Rows` without the overhead of transformers.

For models of Llama's kind. Keys and values are in buffers with one slot per row, each filled from the left. Rows that
are read together move to the first slots, so that a token costs only the arithmetic of the rows that are read. Rows
that end are refilled in place.

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

from ra3gym.lm.fast.llama_layers import LlamaLayers

_DENSE = 0.8
"""Rows move to the first slots once they take at most this share of the slots up to their last one."""


class LlamaRows:
    """`ra3gym.lm.fast.batch_stream.Rows` for models that `llama_layers.supports` accepts; reads the weights once."""

    def __init__(self, model: Any, num_rows: int) -> None:
        self._llama, self._device = LlamaLayers(model), model.device
        self._row_of_slot = list(range(num_rows))
        self._slot_of_row = list(range(num_rows))
        self._length_E = np.zeros(num_rows, dtype=np.int64)
        # Zeros: a mask gives what it hides a weight of 0, but 0 times NaN is NaN.
        shape = (num_rows, self._llama.kv_heads, 64, self._llama.head_size)
        self._keys = [torch.zeros(shape, dtype=self._llama.dtype, device=self._device) for _ in self._llama.layers]
        self._values = [keys.clone() for keys in self._keys]
        self._cos_XI, self._sin_XI = self._llama.rotations(64)

    def begin(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Forget these rows and read their prompts in one pass; return logits `(B, V)` and states `(B, D)`."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        self._make_room(longest)
        # Padding is on the right: no token of the prompt sees it, and later tokens overwrite it.
        ids_BL = torch.tensor([[*prompt] + [0] * (longest - len(prompt)) for prompt in prompts], device=self._device)
        slots = [self._slot_of_row[row] for row in rows]
        last_B = torch.tensor([length - 1 for length in lengths], device=self._device)
        with self._llama.precision():
            hidden_BD = self._read_prompts(ids_BL, torch.tensor(slots, device=self._device), last_B)
            self._length_E[slots] = lengths
            return self._llama.logits(hidden_BD), hidden_BD

    def write(self, rows: Sequence[int], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Append one token to each of these rows; return the logits `(B, V)` and states `(B, D)` after it."""
        self._gather(rows)
        slots = [self._slot_of_row[row] for row in rows]
        token_B = np.zeros(max(slots) + 1, dtype=np.int64)
        token_B[slots] = tokens
        self._make_room(int(self._length_E[: len(token_B)].max()) + 1)
        # Slots in between whose row was not asked for read a token too. It is after their end, where nothing sees it,
        # and their next token overwrites it.
        with self._llama.precision():
            hidden_BD = self._read(token_B)[torch.tensor(slots, device=self._device)]
            self._length_E[slots] += 1
            return self._llama.logits(hidden_BD), hidden_BD

    def _make_room(self, positions: int) -> None:
        """Grow buffers and rotations to so many positions, by half at least."""
        have = self._keys[0].shape[2]
        if positions > have:
            size = max(positions, have * 3 // 2)
            self._keys = [F.pad(buffer, (0, 0, 0, size - have)) for buffer in self._keys]
            self._values = [F.pad(buffer, (0, 0, 0, size - have)) for buffer in self._values]
            self._cos_XI, self._sin_XI = self._llama.rotations(size)

    def _gather(self, rows: Sequence[int]) -> None:
        """Move these rows to the first slots, in exchange for the rows there, where that saves enough work."""
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
        """Fill slots with whole prompts; return the final states at the last token of each prompt, `(B, D)`."""
        llama, kv_heads, (B, L) = self._llama, self._llama.kv_heads, ids_BL.shape
        cos_L1I, sin_L1I = self._cos_XI[:L, None], self._sin_XI[:L, None]
        x_BLD = llama.embed(ids_BL)
        for layer, keys_EJXI, values_EJXI in zip(llama.layers, self._keys, self._values, strict=True):
            qkv = layer.queries_keys_values(x_BLD).view(B, L, -1, llama.head_size)
            queries_and_key = llama.rotated(qkv[:, :, :-kv_heads], cos_L1I, sin_L1I)
            keys_BJLI = queries_and_key[:, :, -kv_heads:].transpose(1, 2)
            values_BJLI = qkv[:, :, -kv_heads:].transpose(1, 2)
            keys_EJXI[slot_B, :, :L], values_EJXI[slot_B, :, :L] = keys_BJLI, values_BJLI
            query_BHLI = queries_and_key[:, :, :-kv_heads].transpose(1, 2)
            mixed_BHLI = F.scaled_dot_product_attention(
                query_BHLI,
                keys_BJLI,
                values_BJLI,
                is_causal=True,
                scale=llama.head_size**-0.5,
                enable_gqa=query_BHLI.shape[1] != kv_heads,
            )
            x_BLD = x_BLD + layer.out(mixed_BHLI.transpose(1, 2).reshape(B, L, -1))
            x_BLD = x_BLD + layer.feed_forward(x_BLD)
        return llama.final_states(x_BLD[torch.arange(B, device=self._device), last_B])

    def _read(self, token_B: npt.NDArray[np.int64]) -> Tensor:
        """Read one token in each of the first B slots, at the end of its row; return the final states, `(B, D)`."""
        llama, B, kv_heads, size = self._llama, len(token_B), self._llama.kv_heads, self._llama.head_size
        end = int(self._length_E[:B].max()) + 1
        # A copy: on the CPU the tensor would share memory with the lengths, which change.
        at_B = torch.from_numpy(self._length_E[:B].copy()).to(self._device)
        slot_B = torch.arange(B, device=self._device)
        cos_B1I, sin_B1I = self._cos_XI[at_B][:, None], self._sin_XI[at_B][:, None]
        x_BD = llama.embed(torch.from_numpy(token_B).to(self._device))
        bias_B1X = None
        if end > int(self._length_E[:B].min()) + 1:
            unseen_BX = torch.arange(end, device=self._device) > at_B[:, None]
            bias_B1X = torch.zeros(B, end, dtype=llama.dtype, device=self._device)
            bias_B1X = bias_B1X.masked_fill_(unseen_BX, -torch.inf)[:, None]
        for layer, keys_EJXI, values_EJXI in zip(llama.layers, self._keys, self._values, strict=True):
            qkv = layer.queries_keys_values(x_BD).view(B, -1, size)
            queries_and_key = llama.rotated(qkv[:, :-kv_heads], cos_B1I, sin_B1I)
            keys_EJXI[slot_B, :, at_B] = queries_and_key[:, -kv_heads:]
            values_EJXI[slot_B, :, at_B] = qkv[:, -kv_heads:]
            query = queries_and_key[:, :-kv_heads].reshape(B * kv_heads, -1, size)
            keys = keys_EJXI[:B].view(B * kv_heads, -1, size)[:, :end]
            values = values_EJXI[:B].view(B * kv_heads, -1, size)[:, :end]
            scores = torch.bmm(query, keys.transpose(1, 2)).mul_(size**-0.5)
            if bias_B1X is not None:
                scores.view(B, -1, end).add_(bias_B1X)
            mixed = torch.bmm(torch.softmax(scores, dim=-1), values).view(B, -1)
            x_BD = x_BD + layer.out(mixed)
            x_BD = x_BD + layer.feed_forward(x_BD)
        return llama.final_states(x_BD)
