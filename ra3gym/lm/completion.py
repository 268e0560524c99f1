"""Completions of prompts as text: encode, sample, decode, with the model's own begin, end and padding tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ra3gym.lm.model import LoadedModel
from ra3gym.lm.sampling import generate
from ra3gym.lm.stream import end_ids
from ra3gym.lm.tokenizer import decode_completion, encode_prompt


@dataclass(frozen=True)
class Completions:
    """G completions of each of P prompts; row r belongs to prompt `r // G`.

    Attributes:
        ids: token ids, end token included where there is one.
        texts: the same as text, with latents and other special tokens but without the end token.
    """

    ids: tuple[list[int], ...]
    texts: tuple[str, ...]


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> Completions:
    """Sample `group_size` completions of each prompt; at temperature 0, take the likeliest token each time.

    Raises:
        ConfigError: as `generate`, for example a prompt that leaves no room for `max_new_tokens`.
        ModelError: there is no end token.
    """
    ends = end_ids(LoadedModel(model, tokenizer))
    prompt_ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    samples = generate(
        model,
        prompt_ids,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        eos_id=ends,
        pad_id=min(ends) if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        generator=generator,
        temperature=temperature or 1.0,
        greedy=temperature == 0,
    )
    ids = samples.completions()
    written = [row[:-1] if row and row[-1] in ends else row for row in ids]
    texts = (decode_completion(tokenizer, prompt_ids[r // group_size], row) for r, row in enumerate(written))
    return Completions(tuple(ids), tuple(texts))
