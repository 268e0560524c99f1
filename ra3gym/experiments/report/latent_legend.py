"""The legend of the latents in annotated traces: what each is about, its color and its stroke."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ra3gym.abstractions.latents.colors import COLORS
from ra3gym.abstractions.latents.corpus import line_template
from ra3gym.abstractions.latents.document import Document

STROKES = ("solid", "dashed", "dotted", "double")
"""Border styles of CSS."""

TYPICAL_LINES = 3


@dataclass(frozen=True)
class LatentInfo:
    """A latent that the traces use.

    Attributes:
        latent: its number.
        names: the prompt words that call for it.
        lines: number of lines under it.
        share: share of all lines.
        segments: number of segments.
        duration: mean number of lines per segment.
        gain: mean gain per line in nats; `None` if it was not measured.
        typical: the kinds of lines that distinguish it from other latents, most informative first. Each is given in its
            most frequent spelling, without indent and line break.
        color: background color, as "#rrggbb".
        stroke: border style.
    """

    latent: int
    names: tuple[str, ...]
    lines: int
    share: float
    segments: int
    duration: float
    gain: float | None
    typical: tuple[str, ...]
    color: str
    stroke: str


def describe_latents(traces: Sequence[Document], names: Sequence[Sequence[str]]) -> dict[int, LatentInfo]:
    """Return the latents that the traces use, sorted by their number of lines, then by their own number."""
    lines: Counter[int] = Counter()
    segments: Counter[int] = Counter()
    neighbors: Counter[tuple[int, int]] = Counter()
    gains: dict[int, list[float]] = {}
    kinds: dict[int, Counter[str]] = {}
    spellings: dict[tuple[int, str], Counter[str]] = {}
    for trace in traces:
        order = [z for z, _, _ in trace.segments]
        segments.update(order)
        neighbors.update((min(pair), max(pair)) for pair in pairwise(order))
        for n, (z, line) in enumerate(zip(trace.latents, trace.lines, strict=True)):
            lines[z] += 1
            kind = line_template(line)
            kinds.setdefault(z, Counter())[kind] += 1
            spellings.setdefault((z, kind), Counter())[line.strip()] += 1
            if trace.gains is not None:
                gains.setdefault(z, []).append(trace.gains[n])
    total: Counter[str] = sum(kinds.values(), Counter())
    by_use = sorted(lines, key=lambda z: (-lines[z], z))
    looks = _looks(by_use, neighbors)
    return {
        z: LatentInfo(
            latent=z,
            names=tuple(names[z]) if z < len(names) else (),
            lines=lines[z],
            share=lines[z] / lines.total(),
            segments=segments[z],
            duration=lines[z] / segments[z],
            gain=float(np.mean(gains[z])) if z in gains else None,
            typical=tuple(spellings[z, kind].most_common(1)[0][0] for kind in _typical(kinds[z], total)),
            color=looks[z][0],
            stroke=looks[z][1],
        )
        for z in by_use
    }


def _typical(kinds: Counter[str], total: Counter[str]) -> list[str]:
    """Return the kinds of lines with the highest `n(line, z) log(p(line | z) / p(line))`, a part of the information.

    Kinds that are as frequent under all latents are left out, unless there are no others.
    """

    def information(kind: str) -> float:
        return kinds[kind] * math.log(kinds[kind] * total.total() / (kinds.total() * total[kind]))

    best = sorted((kind for kind in kinds if kind.strip()), key=lambda kind: (-information(kind), kind))
    distinctive = [kind for kind in best if information(kind) > 1e-9]
    return (distinctive or best)[:TYPICAL_LINES]


def _looks(by_use: Sequence[int], neighbors: Counter[tuple[int, int]]) -> dict[int, tuple[str, str]]:
    """Return color and stroke of each latent; latents that are often neighbors get different colors.

    Greedy, the most used latent first: the color with the fewest neighbors, among these the one used least.
    """
    looks: dict[int, tuple[str, str]] = {}
    given: dict[str, list[int]] = {color: [] for color in COLORS}
    for z in by_use:

        def cost(color: str, z: int = z) -> tuple[int, int]:
            latents = given[color]
            return sum(neighbors[min(z, other), max(z, other)] for other in latents), len(latents)

        # An unused color costs nothing, so the first latents get one each.
        color = min(COLORS, key=cost)
        looks[z] = color, STROKES[len(given[color]) % len(STROKES)]
        given[color].append(z)
    return looks
