"""Programs as text in colour: pieces under their latents, shown in a terminal by ANSI escape codes.

The colours are those of the frames (`ra3gym.envs.frames`): black on the latent's colour, mixed with white, which reads
well on light and dark terminals alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from ra3gym.abstractions.inference.problem import NO_LATENT
from ra3gym.abstractions.latents.colours import COLOURS

TINT = 0.35
"""Share of a latent's colour behind its text, so that black reads well on it."""
_RESET = "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal might obey: a model may write it. Tabs and line breaks stay."""


class Run(NamedTuple):
    """Text under one latent, or under none; it may span lines. `faint`: it is still ahead."""

    text: str
    latent: int = NO_LATENT
    faint: bool = False


def ansi_text(runs: Iterable[Run]) -> str:
    """The runs' text; what stands under a latent has its colour, unless `NO_COLOR` is set (https://no-color.org).

    Each line is coloured for itself, so that no colour runs on to the edge of a terminal. Control characters of the
    text become question marks: the only escape codes are ours.
    """
    plain = bool(os.environ.get("NO_COLOR"))
    return "".join(_painted(run, plain) for run in runs)


def _painted(run: Run, plain: bool) -> str:
    text = _CONTROL.sub("?", run.text)
    if plain or run.latent == NO_LATENT:
        return text
    red, green, blue = tinted(COLOURS[run.latent % len(COLOURS)], TINT)
    begin = f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m"
    return "\n".join(f"{begin}{line}{_RESET}" if line else "" for line in text.split("\n"))


@lru_cache(maxsize=256)
def tinted(colour: str, share: float) -> tuple[int, int, int]:
    """A colour such as "#0072b2" mixed with white, as red, green and blue up to 255."""
    red, green, blue = (round(255 - share * (255 - part)) for part in bytes.fromhex(colour.removeprefix("#")))
    return red, green, blue
