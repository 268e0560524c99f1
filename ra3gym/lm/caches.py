"""Models whose cache cannot be copied row by row: state-space models and hybrids of them with attention.

Mamba, RecurrentGemma, LFM2, Qwen3-Next, Jamba and others keep a recurrent state instead of, or beside, keys and values.
They take a slow path: every token reads the whole text of its row again.

Shape letters: see CONTRIBUTING.md (P prompts, G members of a group, B rows).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ra3gym.errors import ModelError


def has_row_cache(model: Any) -> bool:
    """Return whether the model's cache holds keys and values alone, which can be repeated and selected by rows."""
    from transformers import DynamicCache

    layers = DynamicCache(config=model.config).layers
    return not any(base.__name__ == _RECURRENT for layer in layers for base in type(layer).__mro__)


def require_row_cache(model: Any, needed_for: str) -> None:
    """Raise `ModelError` for a model that keeps a recurrent state; `needed_for` begins the message."""
    if not has_row_cache(model):
        raise ModelError(
            f"{needed_for} needs a model that keeps keys and values of attention, and {type(model).__name__} keeps a "
            "recurrent state: take a transformer without state-space or linear-attention layers"
        )


def warn_slow_path(model: Any) -> None:
    """Warn, once for each family of models, that they are sampled without a cache."""
    _warn_slow_path(type(model).__name__)


@cache
def _warn_slow_path(family: str) -> None:
    warnings.warn(
        f"{family} keeps a recurrent state that rows of a batch cannot share: every token reads its whole text again, "
        "which is slow for long completions",
        stacklevel=4,
    )


class WholeTextDecoder:
    """A `ra3gym.lm.sampling.Decoder` for every causal language model, without a cache.

    Rows of the same length are read together, so that there is no padding: recurrent states would read it.
    """

    logits_BV: Tensor

    def __init__(self, model: Any, prompt_ids: Sequence[Sequence[int]], group_size: int) -> None:
        warn_slow_path(model)
        self._model = model
        self._device = next(model.parameters()).device
        self._text_of_row = [list(prompt) for prompt in prompt_ids for _ in range(group_size)]
        prompt_logits = self._logits([list(prompt) for prompt in prompt_ids])
        self.logits_BV = prompt_logits.repeat_interleave(group_size, 0)

    def read(self, token_B: Tensor) -> None:
        """Append one token to each row."""
        for text, token in zip(self._text_of_row, token_B.tolist(), strict=True):
            text.append(token)
        self.logits_BV = self._logits(self._text_of_row)

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self._text_of_row = [self._text_of_row[row] for row in rows.tolist()]

    def _logits(self, texts: Sequence[list[int]]) -> Tensor:
        """Return the logits after each text, (rows, V)."""
        logits: list[Tensor | None] = [None] * len(texts)
        for length in sorted({len(text) for text in texts}):
            rows = [row for row, text in enumerate(texts) if len(text) == length]
            ids = torch.tensor([texts[row] for row in rows], device=self._device)
            output = self._model(input_ids=ids, use_cache=False, logits_to_keep=1)
            for row, logits_V in zip(rows, output.logits[:, -1], strict=True):
                logits[row] = logits_V
        return torch.stack([logits_V for logits_V in logits if logits_V is not None])


_RECURRENT = "LinearAttentionCacheLayerMixin"
"""The base class in transformers of cache layers with a recurrent state."""
