"""What each latent of annotated traces is about, and how it is shown: in a colour and a stroke, beside its number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ra3gym.abstractions.latents.colours import COLOURS
from ra3gym.abstractions.latents.corpus import line_template
from ra3gym.abstractions.latents.document import Document

STROKES = ("solid", "dashed", "dotted", "double")
"""Border styles of CSS."""

TYPICAL_LINES = 3


@dataclass(frozen=True)
class LatentInfo:
    """One latent that is used.

    share: of all lines. duration: mean lines per segment. gain: mean nats per line that the latent is worth, `None`
    when it was not measured. typical: the kinds of lines that set it apart, most telling first, each as it is written
    most often, without indent and line break. colour, stroke: how it is shown.
    """

    latent: int
    names: tuple[str, ...]
    lines: int
    share: float
    segments: int
    duration: float
    gain: float | None
    typical: tuple[str, ...]
    colour: str
    stroke: str


def describe_latents(traces: Sequence[Document], names: Sequence[Sequence[str]]) -> dict[int, LatentInfo]:
    """All latents that the traces use, most used first (by lines, then by number)."""
    lines: Counter[int] = Counter()
    segments: Counter[int] = Counter()
    neighbours: Counter[tuple[int, int]] = Counter()
    gains: dict[int, list[float]] = {}
    kinds: dict[int, Counter[str]] = {}
    spellings: dict[tuple[int, str], Counter[str]] = {}
    for trace in traces:
        order = [z for z, _, _ in trace.segments]
        segments.update(order)
        neighbours.update((min(pair), max(pair)) for pair in pairwise(order))
        for n, (z, line) in enumerate(zip(trace.latents, trace.lines, strict=True)):
            lines[z] += 1
            kind = line_template(line)
            kinds.setdefault(z, Counter())[kind] += 1
            spellings.setdefault((z, kind), Counter())[line.strip()] += 1
            if trace.gains is not None:
                gains.setdefault(z, []).append(trace.gains[n])
    total: Counter[str] = sum(kinds.values(), Counter())
    by_use = sorted(lines, key=lambda z: (-lines[z], z))
    looks = _looks(by_use, neighbours)
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
            colour=looks[z][0],
            stroke=looks[z][1],
        )
        for z in by_use
    }


def _typical(kinds: Counter[str], total: Counter[str]) -> list[str]:
    """The kinds of lines with the largest part in the latent's information, `n(line, z) log p(line | z) / p(line)`.

    What is merely frequent everywhere is left out, unless there is nothing else.
    """

    def telling(kind: str) -> float:
        return kinds[kind] * math.log(kinds[kind] * total.total() / (kinds.total() * total[kind]))

    best = sorted((kind for kind in kinds if kind.strip()), key=lambda kind: (-telling(kind), kind))
    apart = [kind for kind in best if telling(kind) > 1e-9]
    return (apart or best)[:TYPICAL_LINES]


def _looks(by_use: Sequence[int], neighbours: Counter[tuple[int, int]]) -> dict[int, tuple[str, str]]:
    """Colour and stroke of each latent: those that often stand side by side get different colours.

    Greedy, most used first: the colour that clashes least, and among these the one given least often.
    """
    looks: dict[int, tuple[str, str]] = {}
    given: dict[str, list[int]] = {colour: [] for colour in COLOURS}
    for z in by_use:

        def cost(colour: str, z: int = z) -> tuple[int, int]:
            held = given[colour]
            return sum(neighbours[min(z, other), max(z, other)] for other in held), len(held)

        # A fresh colour costs nothing, so that the first latents get one each.
        colour = min(COLOURS, key=cost)
        looks[z] = colour, STROKES[len(given[colour]) % len(STROKES)]
        given[colour].append(z)
    return looks
