"""The arms of a study: what each one's mid-training documents are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ra3gym.abstractions.latents.annotations import Annotations, random_latents, shuffled
from ra3gym.agents.mid_training.documents import DocumentWriter, write_documents
from ra3gym.lm import pause_id
from ra3gym.tasks import ExpertTrace

LatentSource = Literal["inferred", "pause", "random", "shuffled", "planted"]
PromptSource = Literal["inferred", "planted"]


@dataclass(frozen=True)
class Recipe:
    """What an arm trains on, and how long.

    latents: what stands at switches (nothing when `None`). prompts: where the prompts of undocumented traces come from
    (nowhere when `None`). budget: tokens, as a multiple of the study's. until: stop once pass@1 on the tune split
    reaches that of this other arm, which stands earlier in the study: to compare RLVR from equal starting points.
    """

    latents: LatentSource | None = None
    prompts: PromptSource | None = None
    budget: float = 1.0
    until: str | None = None


ARM_RECIPES: dict[str, Recipe | None] = {
    "base": None,  # no mid-training
    "ntp": Recipe(),
    "pause": Recipe(latents="pause"),
    "random": Recipe(latents="random"),
    "shuffled": Recipe(latents="shuffled"),
    "latents": Recipe(latents="inferred"),
    "pseudo": Recipe(prompts="inferred"),
    "ra3": Recipe(latents="inferred", prompts="inferred"),
    "ra3-shuffled": Recipe(latents="shuffled", prompts="inferred"),
    "oracle": Recipe(latents="planted", prompts="planted"),
    "ntp-long": Recipe(budget=4.0),
    "ra3-as-pseudo": Recipe(latents="inferred", prompts="inferred", until="pseudo"),
    "ra3-as-ntp-long": Recipe(latents="inferred", prompts="inferred", until="ntp-long"),
}


def arm_documents(
    recipe: Recipe,
    writer: DocumentWriter,
    traces: Sequence[ExpertTrace],
    inferred: Annotations,
    planted: Annotations,
    rng: np.random.Generator,
) -> list[list[int]]:
    """The mid-training documents of one arm, as token ids; `planted` is read for the oracle alone."""
    latents: dict[LatentSource, Annotations] = {
        "inferred": inferred,
        "pause": inferred,
        "random": random_latents(inferred, rng),
        "shuffled": shuffled(inferred, rng),
        "planted": planted,
    }
    prompts: dict[PromptSource, Annotations] = {"inferred": inferred, "planted": planted}
    return write_documents(
        writer,
        traces,
        latents=None if recipe.latents is None else latents[recipe.latents],
        prompts=None if recipe.prompts is None else prompts[recipe.prompts],
        pause_token=pause_id(writer.tokenizer) if recipe.latents == "pause" else None,
        rng=rng,
    )
