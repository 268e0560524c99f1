"""Decoding as CUDA graphs: the GPU repeats a token's few hundred kernels without being told each of them again.

With small models a GPU waits for its launches most of the time. A graph freezes shapes and addresses, so here every
buffer has its final size from the start, what is not written yet is hidden, and positions are counted on the device.

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
"""Set to 0 in the environment, it keeps decoding on a GPU to one launch per kernel."""

_GRAPH_FROM = 16
"""With at least so many new tokens, recording a graph pays for itself."""


def wants_graphs(device: torch.device, max_new_tokens: int) -> bool:
    """Whether decoding so many tokens on this device goes by graphs."""
    return device.type == "cuda" and max_new_tokens >= _GRAPH_FROM and os.environ.get(GRAPHS_VARIABLE) != "0"


class GraphedLlamaDecoder(LlamaDecoder):
    """`LlamaDecoder` whose token is a graph, recorded anew where rows leave.

    The first token of a batch is read without a graph: libraries set themselves up in it, which none may do in a
    recording.
    """

    _token_B: Tensor
    _replay: Callable[[], None] | None
    _warm: bool

    def __init__(self, model: Any, ids_PL: Tensor, mask_PL: Tensor, group_size: int, max_new_tokens: int) -> None:
        super().__init__(model, ids_PL, mask_PL, group_size, max_new_tokens)
        self._records = True
        self._fix()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
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
        """Lay out the state of a token where it will stay, for the rows of now."""
        self._replay = None
        self._warm = False
        device = self._position_B.device
        self._token_B = torch.zeros_like(self._position_B)
        self._at_1 = torch.tensor([self._filled], device=device)
        length = self._keys[0].shape[2]
        self._unwritten_X = torch.zeros(length, dtype=self._llama.dtype, device=device)
        self._unwritten_X[self._filled :] = -torch.inf
        for buffer in (*self._keys, *self._values):
            buffer[:, :, self._filled :] = 0.0  # a NaN would come through its weight of 0

    def _record(self) -> Callable[[], None] | None:
        try:
            return record(self._advance)
        except RuntimeError as error:
            warnings.warn(
                f"recording a CUDA graph failed ({error}): sampling goes on without, more slowly; "
                f"{GRAPHS_VARIABLE}=0 spares the attempt",
                stacklevel=2,
            )
            self._records = False
            return None

    def _advance(self) -> None:
        """A token on the device alone: no shape and no address differs from one to the next."""
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
    """What repeats `step` on the addresses of now; recording does not run it. It has run once already."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], None] = graph.replay
    return replay
