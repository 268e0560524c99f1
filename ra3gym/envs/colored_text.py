"""Programs as colored text: each piece has the color of its latent, shown in a terminal by ANSI escape codes.

The colors are those of the frames (`ra3gym.envs.frames`): black on the latent's color mixed with white, which is easy
to read on light and dark terminals.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from ra3gym.abstractions.inference.problem import NO_LATENT
from ra3gym.abstractions.latents.colors import COLORS

TINT = 0.35
"""Share of a latent's color in the background of its text; the rest is white, so that black is easy to read."""
_RESET = "\x1b[0m"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters that a model may write and a terminal might obey; not tabs and line breaks."""


class Run(NamedTuple):
    """Text under one latent, or under none; it may span lines.

    Attributes:
        text: as it is shown.
        latent: `NO_LATENT` for none.
        faint: for text that an episode has not reached yet.
    """

    text: str
    latent: int = NO_LATENT
    faint: bool = False


def ansi_text(runs: Iterable[Run]) -> str:
    """Return the text of the runs in their latents' colors, plain if `NO_COLOR` is set (https://no-color.org).

    Color codes end with each line, so that no color continues to the edge of a terminal. Control characters of the text
    become question marks, so that all escape codes are ours.
    """
    plain = bool(os.environ.get("NO_COLOR"))
    return "".join(_painted(run, plain) for run in runs)


def _painted(run: Run, plain: bool) -> str:
    text = _CONTROL.sub("?", run.text)
    if plain or run.latent == NO_LATENT:
        return text
    red, green, blue = tinted(COLORS[run.latent % len(COLORS)], TINT)
    begin = f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m"
    return "\n".join(f"{begin}{line}{_RESET}" if line else "" for line in text.split("\n"))


@lru_cache(maxsize=256)
def tinted(color: str, share: float) -> tuple[int, int, int]:
    """Mix a color such as "#0072b2" with white; return red, green and blue up to 255."""
    red, green, blue = (round(255 - share * (255 - part)) for part in bytes.fromhex(color.removeprefix("#")))
    return red, green, blue
