"""Recipes: what the documents of mid-training are made of.

The method, its controls and next-token prediction differ in nothing else, so all are recipes of one loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.controls import CONTROLS
from ra3gym.abstractions.latents.corpus import prompt_words
from ra3gym.abstractions.latents.document import Document, DocumentWriter
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.errors import ConfigError, UnknownNameError
from ra3gym.tasks import ExpertTrace

INFERRED, PLANTED = "inferred", "planted"
LATENT_SOURCES = (INFERRED, *CONTROLS, PLANTED)
PROMPT_SOURCES = (INFERRED, PLANTED)


@dataclass(frozen=True)
class Recipe:
    """What mid-training is made of, and how long it is.

    Attributes:
        latents: what is written at each switch: "inferred" latents; "pause" tokens, "random" or "shuffled" latents in
            the inferred segments; or the "planted" labels, an upper bound. `None` writes nothing.
        prompts: whether undocumented traces get a prompt written from their "inferred" latents or "planted" labels.
            `None` leaves them without.
        budget: tokens of an M-step, as a multiple of its configuration's.

    Raises:
        ConfigError: a budget that is not positive.
        UnknownNameError: another source.
    """

    latents: str | None = None
    prompts: str | None = None
    budget: float = 1.0

    def __post_init__(self) -> None:
        if self.latents is not None and self.latents not in LATENT_SOURCES:
            raise UnknownNameError("source of latents", self.latents, LATENT_SOURCES)
        if self.prompts is not None and self.prompts not in PROMPT_SOURCES:
            raise UnknownNameError("source of prompts", self.prompts, PROMPT_SOURCES)
        if not 0 < self.budget < float("inf"):
            raise ConfigError(f"budget={self.budget} must be a positive number")

    @property
    def needs_e_step(self) -> bool:
        """Whether the documents depend on latents; next-token prediction needs none."""
        return self.latents is not None or self.prompts is not None

    @property
    def shows_inferred(self) -> bool:
        """Whether the documents show inferred latents, or prompts that are written from them."""
        return INFERRED in (self.latents, self.prompts)

    def sources(
        self, traces: Sequence[ExpertTrace], inferred: Annotations | None, rng: np.random.Generator
    ) -> tuple[Annotations | None, Annotations | None]:
        """Return the annotations that latents are written from, and those that prompts are written from.

        All controls are drawn in every recipe, so that the words drawn for prompts after them are the same in all.

        Args:
            traces: the corpus; planted labels are read for the source "planted" alone.
            inferred: what the E-step found; may be `None` for a recipe that needs no E-step.
            rng: draws the controls.
        """
        if inferred is None or not self.needs_e_step:
            return None, None
        found = {INFERRED: inferred, **{name: control(inferred, rng) for name, control in CONTROLS.items()}}
        if PLANTED in (self.latents, self.prompts):
            found[PLANTED] = OracleEStep().infer(traces, rng)
        return (
            None if self.latents is None else found[self.latents],
            None if self.prompts is None else found[self.prompts],
        )

    def documents(
        self,
        writer: DocumentWriter,
        traces: Sequence[ExpertTrace],
        inferred: Annotations | None,
        rng: np.random.Generator,
    ) -> Iterator[Document]:
        """Write the documents of this recipe, in the order of the traces; see `sources` and `write_documents`."""
        latents, prompts = self.sources(traces, inferred, rng)
        return write_documents(writer, traces, latents=latents, prompts=prompts, rng=rng)


NTP = Recipe()
"""Next-token prediction on the plain traces."""

RA3 = Recipe(latents=INFERRED, prompts=INFERRED)
"""The method: inferred latents at switches, and the prompts that undocumented traces lack."""


def write_documents(
    writer: DocumentWriter,
    traces: Sequence[ExpertTrace],
    *,
    latents: Annotations | None = None,
    prompts: Annotations | None = None,
    rng: np.random.Generator,
) -> Iterator[Document]:
    """Write a document for each trace: a plain one when nothing else is given.

    Args:
        writer: the tokenizer's.
        traces: the corpus that the annotations belong to.
        latents: the latents to write at the switches of their paths.
        prompts: the latents to write missing prompts from (pseudo-documentation).
        rng: draws among the words that name a latent.

    Raises:
        ConfigError, DataError, ModelError: latents that cannot be written; see `DocumentWriter.check`.
    """
    if latents is not None:
        writer.check(traces, latents)

    def document(index: int) -> Document:
        prompt = traces[index].prompt
        if prompts is not None:
            prompt = pseudo_prompt(prompt, prompts.paths[index], prompts.names, rng)
        return writer.write(traces[index], latents, index, prompt=prompt)

    return map(document, range(len(traces)))


def pseudo_prompt(prompt: str, path: LatentPath, names: Sequence[Sequence[str]], rng: np.random.Generator) -> str:
    """Write the prompt that a trace lacks from its latents: one word for each segment, drawn from the latent's names.

    A prompt that documents already is returned as it is, and so is one whose latents have no names.
    """
    if prompt_words(prompt):
        return prompt
    words = [str(rng.choice(names[z])) for z in path.segment_latents if names[z]]
    return f"# {' '.join(words)}\n{prompt}" if words else prompt
