"""Completions of prompts as text: encode, sample, decode, with the model's own begin, end and padding tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ra3gym.lm.model import LoadedModel
from ra3gym.lm.rendering import ForcedText, Prompt, completion_text, cut_prompt
from ra3gym.lm.sampling import generate
from ra3gym.lm.stopping import StopRule
from ra3gym.lm.stream import end_ids
from ra3gym.lm.tokenizer import encode_prompt


@dataclass(frozen=True)
class Completions:
    """G completions of each of P prompts; row r belongs to prompt `r // G`.

    Attributes:
        ids: token ids, end token included where there is one. Where a prompt was cut back to the last place that ends
            a token whatever follows (`ra3gym.lm.rendering`), they begin with its end.
        texts: what follows the prompt, with latents and other special tokens but without the end token.
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
    make_stop: Callable[[Sequence[Prompt], int], StopRule] | None = None,
) -> Completions:
    """Sample `group_size` completions of each prompt; at temperature 0, take the likeliest token each time.

    `make_stop` makes a rule that ends completions early from the prompts, as they are read, and `group_size`.

    Raises:
        ConfigError: as `generate`, for example a prompt that leaves no room for `max_new_tokens`.
        ModelError: there is no end token.
    """
    ends = end_ids(LoadedModel(model, tokenizer))
    cut = [cut_prompt(tokenizer, prompt) for prompt in prompts]
    samples = generate(
        model,
        [prompt.ids for prompt in cut],
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        eos_id=ends,
        pad_id=min(ends) if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        generator=generator,
        temperature=temperature or 1.0,
        greedy=temperature == 0,
        forced=ForcedText.of(tokenizer, cut),
        stop=None if make_stop is None else make_stop(cut, group_size),
    )
    ids = samples.completions()
    written = [row[:-1] if row and row[-1] in ends else row for row in ids]
    texts = (completion_text(tokenizer, cut[r // group_size], row) for r, row in enumerate(written))
    return Completions(tuple(ids), tuple(texts))


def token_budgets(loaded: LoadedModel, prompts: Sequence[str], max_new_tokens: int) -> list[int]:
    """Return the longest completion of each prompt, in tokens: `max_new_tokens`, or what the model's context leaves."""
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions is None:
        return [max_new_tokens] * len(prompts)
    lengths = [len(encode_prompt(loaded.tokenizer, prompt)) for prompt in prompts]
    return [max(0, min(max_new_tokens, positions - length)) for length in lengths]
