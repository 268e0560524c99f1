"""Controls made from annotations: the same segments, with latents that say nothing.

What a method gains beyond these is not due to extra tokens or to the cuts between segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.tasks.answers import PAUSE_TOKEN

Control = Callable[[Annotations, np.random.Generator], Annotations]


def paused(annotations: Annotations, rng: np.random.Generator) -> Annotations:
    """Return the same segments under one pause token: as many extra tokens, all alike. Draws nothing.

    A rationale latent whose comment is empty writes nothing, so it gets no pause token either.
    """
    if annotations.comments is None:
        silent = [False] * annotations.num_latents
    else:
        silent = [comment == "" for comment in annotations.comments]
    paths = tuple(LatentPath(tuple(int(silent[z]) for z in path.latents), path.switches) for path in annotations.paths)
    tokens = (PAUSE_TOKEN, "") if any(silent) else (PAUSE_TOKEN,)
    return Annotations(paths, names=((),) * len(tokens), metrics=annotations.metrics, tokens=tokens)


def random_latents(annotations: Annotations, rng: np.random.Generator) -> Annotations:
    """Return the same segments, each under a latent drawn uniformly."""
    num_segments = sum(sum(path.switches) for path in annotations.paths)
    return _relabeled(annotations, rng.integers(annotations.num_latents, size=num_segments))


def shuffled(annotations: Annotations, rng: np.random.Generator) -> Annotations:
    """Return the same segments, their latents permuted over the whole corpus: usage is kept, meaning is not."""
    inferred = np.array([z for path in annotations.paths for z in path.segment_latents])
    return _relabeled(annotations, rng.permutation(inferred))


CONTROLS: dict[str, Control] = {"pause": paused, "random": random_latents, "shuffled": shuffled}
"""The controls by name, in the order in which a recipe draws them."""


def _relabeled(annotations: Annotations, latent_S: npt.NDArray[np.int64]) -> Annotations:
    """Return the same segments under other latents, given for all segments of the corpus in order."""
    remaining = iter(latent_S.tolist())
    paths = []
    for path in annotations.paths:
        latents: list[int] = []
        for switch in path.switches:
            latents.append(next(remaining) if switch else latents[-1])
        paths.append(LatentPath(tuple(latents), path.switches))
    return replace(annotations, paths=tuple(paths), gains=None)
