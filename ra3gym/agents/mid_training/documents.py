"""The texts an M-step trains on: traces, with or without latents and inferred prompts, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.corpus import prompt_words
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError
from ra3gym.lm import encode_prompt, latent_ids
from ra3gym.tasks import ExpertTrace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class DocumentWriter:
    """Turns traces into token ids; each distinct text is tokenised once (a line break is always a token's end)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.latent_ids = latent_ids(tokenizer)
        self._cache: dict[str, list[int]] = {}
        self._prompt_cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._cache[text]

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, with the tokenizer's own begin tokens."""
        if text not in self._prompt_cache:
            self._prompt_cache[text] = encode_prompt(self.tokenizer, text)
        return self._prompt_cache[text]

    def document(self, prompt: str, steps: Sequence[str], marks: Sequence[int | None]) -> list[int]:
        """`prompt`, then each step behind its mark (a token id, or none), then the end of text."""
        ids = list(self.encode_prompt(prompt))
        for step, mark in zip(steps, marks, strict=True):
            if mark is not None:
                ids.append(mark)
            ids += self.encode(step)
        ids.append(self.tokenizer.eos_token_id)
        return ids

    def commented(self, prompt: str, steps: Sequence[str], marks: Sequence[str]) -> list[int]:
        """`prompt`, then the steps with the comment lines above them, then the end of text.

        Prompt and program are encoded each as a whole, as they are when the model continues a prompt.
        """
        program = "".join(mark + step for mark, step in zip(marks, steps, strict=True))
        return [*self.encode_prompt(prompt), *self.encode(program), self.tokenizer.eos_token_id]

    def latent_marks(self, path: LatentPath) -> list[int | None]:
        """A latent token at each switch, nothing on kept lines (the paper's form)."""
        return [self.latent_ids[z] if switch else None for z, switch in zip(path.latents, path.switches, strict=True)]


def pseudo_prompt(prompt: str, path: LatentPath, names: Sequence[Sequence[str]], rng: np.random.Generator) -> str:
    """The prompt a trace lacks, written from its latents: one word per segment, drawn from the latent's names.

    A prompt that documents already is returned as it is; so is one whose latents have no names.
    """
    if prompt_words(prompt):
        return prompt
    words = [str(rng.choice(names[z])) for z in path.segment_latents if names[z]]
    return f"# {' '.join(words)}\n{prompt}" if words else prompt


def write_documents(
    writer: DocumentWriter,
    traces: Sequence[ExpertTrace],
    *,
    latents: Annotations | None = None,
    prompts: Annotations | None = None,
    pause_token: int | None = None,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Documents of all traces: plain ones for next-token prediction when nothing else is given.

    Args:
        writer: the tokeniser.
        traces: the corpus that the annotations belong to.
        latents: puts a latent token at each switch of these paths.
        prompts: writes missing prompts from these latents (pseudo-documentation).
        pause_token: stands in for every latent token: the control with as many tokens that mean nothing.
        rng: draws among the words that name a latent.

    Raises:
        ConfigError: more latents than the tokenizer has tokens for.
    """
    as_tokens = latents is not None and latents.comments is None
    if latents is not None and as_tokens and latents.num_latents > len(writer.latent_ids):
        raise ConfigError(
            f"the annotations use {latents.num_latents} latents, the tokenizer knows {len(writer.latent_ids)}: add the "
            "others with ra3gym.lm.add_latents"
        )
    documents = []
    for index, trace in enumerate(traces):
        prompt = trace.prompt
        if prompts is not None:
            prompt = pseudo_prompt(prompt, prompts.paths[index], prompts.names, rng)
        if latents is not None and latents.comments is not None and pause_token is None:
            documents.append(writer.commented(prompt, trace.steps, latents.marks(index, trace.steps)))
            continue
        marks: list[int | None] = [None] * len(trace.steps)
        if latents is not None:
            marks = writer.latent_marks(latents.paths[index])
            if pause_token is not None:
                marks = [mark and pause_token for mark in marks]
        documents.append(writer.document(prompt, trace.steps, marks))
    return documents
