"""Decoding as CUDA graphs: the GPU replays the few hundred kernels of a token without a launch for each.

With small models a GPU waits for its launches most of the time. A graph freezes shapes and addresses. So every buffer
has its final size from the start, positions that are not filled yet are hidden, and positions are counted on the
device.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ra3gym.lm.fast.llama_decoder import LlamaDecoder

GRAPHS_VARIABLE = "RA3GYM_CUDA_GRAPHS"
"""Set this environment variable to 0 to decode on a GPU without graphs."""

_GRAPH_FROM = 16
"""From so many new tokens on, recording a graph pays for itself."""


def wants_graphs(device: torch.device, max_new_tokens: int) -> bool:
    """Whether to decode so many tokens on this device by graphs."""
    return device.type == "cuda" and max_new_tokens >= _GRAPH_FROM and os.environ.get(GRAPHS_VARIABLE) != "0"


class GraphedLlamaDecoder(LlamaDecoder):
    """A `LlamaDecoder` that replays one graph per token; the graph is recorded anew when rows leave.

    The first token of a batch is read without a graph, because libraries initialize themselves on first use, which is
    forbidden while recording.
    """

    _token_B: Tensor
    _replay: Callable[[], None] | None
    _warm: bool

    def __init__(self, model: Any, ids_PL: Tensor, mask_PL: Tensor, group_size: int, max_new_tokens: int) -> None:
        super().__init__(model, ids_PL, mask_PL, group_size, max_new_tokens)
        self._records = True
        self._fix()

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        super().keep(rows)
        self._fix()

    def read(self, token_B: Tensor) -> None:
        """Append one token to each row."""
        self._token_B.copy_(token_B)
        with self._llama.precision():
            if self._replay is None and self._warm and self._records:
                self._replay = self._record()
            if self._replay is None:
                self._advance()
                self._warm = True
            else:
                self._replay()
        self._filled += 1

    def _fix(self) -> None:
        """Allocate the state of a token at addresses that stay, for the current rows."""
        self._replay = None
        self._warm = False
        device = self._position_B.device
        self._token_B = torch.zeros_like(self._position_B)
        self._at_1 = torch.tensor([self._filled], device=device)
        length = self._keys[0].shape[2]
        self._unwritten_X = torch.zeros(length, dtype=self._llama.dtype, device=device)
        self._unwritten_X[self._filled :] = -torch.inf
        for buffer in (*self._keys, *self._values):
            buffer[:, :, self._filled :] = 0.0  # a weight of 0 would not hide a NaN

    def _record(self) -> Callable[[], None] | None:
        try:
            return record(self._advance)
        except RuntimeError as error:
            warnings.warn(
                f"recording a CUDA graph failed ({error}): sampling continues without it, more slowly; "
                f"{GRAPHS_VARIABLE}=0 avoids the attempt",
                stacklevel=2,
            )
            self._records = False
            return None

    def _advance(self) -> None:
        """Read a token on the device only, with the same shapes and addresses each time."""
        self._unwritten_X.index_fill_(0, self._at_1, 0.0)
        self._step(self._token_B)
        self._position_B.add_(1)
        self._at_1.add_(1)

    def _store(self, layer: int, key_BJI: Tensor, value_BJI: Tensor) -> None:
        self._keys[layer].index_copy_(2, self._at_1, key_BJI[:, :, None])
        self._values[layer].index_copy_(2, self._at_1, value_BJI[:, :, None])

    def _own(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._keys[layer], self._values[layer]

    def _hide(self, own_BHX: Tensor) -> None:
        super()._hide(own_BHX)
        own_BHX.add_(self._unwritten_X)


def record(step: Callable[[], None]) -> Callable[[], None]:
    """Return a function that repeats `step` on its current addresses; call after `step` has run once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay
