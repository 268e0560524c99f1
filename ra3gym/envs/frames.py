"""Frames for `render_mode="rgb_array"`: programs with colored segments, and the states of an MDP.

All frames have one size, so that videos can be made of them. Environments import this module when they render.

Shape letters: see CONTRIBUTING.md (S states).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ra3gym.abstractions.inference.problem import NO_LATENT
from ra3gym.abstractions.latents.colors import COLORS, DARK_COLORS
from ra3gym.envs.colored_text import TINT, Run, tinted

Frame: TypeAlias = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 800, 512
"""Size of a frame in pixels; multiples of 16, as video encoders prefer."""
FONT_SIZE = 15
ROW_HEIGHT = 20
STATUS_HEIGHT = 30
GUTTER_WIDTH = 42
"""Width of the column left of the lines, where the numbers of latents are."""
MARGIN = 8
ROWS = (HEIGHT - STATUS_HEIGHT - MARGIN) // ROW_HEIGHT
SPACE_WIDTH = 8
"""Width of one space of an indent. The font is proportional, and its own spaces are narrow."""

WHITE, INK, FAINT, BAR, HERE = "#ffffff", "#000000", "#767676", "#e8e8e8", "#d55e00"
DARKEST = 0.6
"""Share of color, the rest white, in the cell of the state with the largest value."""
SMALLEST_LABELLED_CELL = 40
LARGEST_CELL = 96


def program_frame(status: str, runs: Sequence[Run], focus: int | None = None) -> Frame:
    """Return a line of status and the text of the runs below it, uint8 `(HEIGHT, WIDTH, 3)`.

    The background of each piece has its latent's color, and a segment's first line has the latent's number beside it.
    Long lines are cut. Of a long text the last lines are shown, or those around line `focus`.
    """
    lines = _lines(runs)
    last = len(lines) if focus is None else min(len(lines), max(focus + ROWS // 3, ROWS))
    first = max(0, last - ROWS)
    image, draw = _page(status)
    shown = NO_LATENT
    for row, line in enumerate(lines[first:last]):
        top = STATUS_HEIGHT + MARGIN // 2 + row * ROW_HEIGHT
        if row == 0 and first:
            _write(draw, (GUTTER_WIDTH, top), f"… {first + 1} lines above", WIDTH - GUTTER_WIDTH - MARGIN, FAINT)
        elif row == ROWS - 1 and last < len(lines):
            _write(draw, (GUTTER_WIDTH, top), f"… {len(lines) - last + 1} lines below", WIDTH - GUTTER_WIDTH, FAINT)
        else:
            _draw_gutter(draw, top, line[0].latent, line[0].latent != shown)
            _draw_line(draw, top, line)
            # If a segment begins within a line, its number is beside the next line.
            shown = line[0].latent if line[-1].latent == line[0].latent else NO_LATENT
    return np.array(image)


def states_frame(status: str, value_S: npt.NDArray[np.float64], terminal_S: npt.NDArray[np.bool_], here: int) -> Frame:
    """Return a line of status and a cell for each state, darker for larger values, uint8 `(HEIGHT, WIDTH, 3)`.

    The cell of the state `here` has a frame; those of terminal states are white and crossed out. Cells that are large
    enough show the state's number and its value.
    """
    image, draw = _page(status)
    room = HEIGHT - STATUS_HEIGHT - 2 * MARGIN
    columns = min(len(value_S), max(1, math.ceil(math.sqrt(len(value_S) * (WIDTH - 2 * MARGIN) / room))))
    rows = math.ceil(len(value_S) / columns)
    size = max(1, min((WIDTH - 2 * MARGIN) // columns, room // rows, LARGEST_CELL))
    live_S = value_S if terminal_S.all() else value_S[~terminal_S]
    low, high = float(live_S.min()), float(live_S.max())
    for state, value in enumerate(value_S.tolist()):
        left, top = MARGIN + state % columns * size, STATUS_HEIGHT + MARGIN + state // columns * size
        box = (left, top, left + size - 1, top + size - 1)
        share = 0.0 if terminal_S[state] or high == low else DARKEST * (value - low) / (high - low)
        draw.rectangle(box, fill=tinted(COLORS[0], share), outline=FAINT if size > 4 else None)
        if terminal_S[state]:
            draw.line((left, top + size - 1, left + size - 1, top), fill=FAINT)
        if size >= SMALLEST_LABELLED_CELL:
            _write(draw, (left + 6, top + 4), str(state), size - 8, INK)
            _write(draw, (left + 6, top + 4 + FONT_SIZE), f"{value:.2f}", size - 8, INK)
    left, top = MARGIN + here % columns * size, STATUS_HEIGHT + MARGIN + here // columns * size
    draw.rectangle((left, top, left + size - 1, top + size - 1), outline=HERE, width=max(1, min(4, size // 4)))
    return np.array(image)


def _page(status: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a frame that is blank below its line of status."""
    image = Image.new("RGB", (WIDTH, HEIGHT), WHITE)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, WIDTH, STATUS_HEIGHT - 1), fill=BAR)
    _write(draw, (MARGIN, 6), status, WIDTH - 2 * MARGIN, INK)
    return image, draw


def _lines(runs: Sequence[Run]) -> list[list[Run]]:
    """Cut the runs at line breaks, at least one run to a line; there is no line after the last line break."""
    lines: list[list[Run]] = [[]]
    for run in runs:
        if run.text:
            first, *others = (run._replace(text=piece) for piece in run.text.split("\n"))
            lines[-1].append(first)
            lines += [[piece] for piece in others]
    # A run that begins or ends with a line break leaves an empty piece. It stays only if its line has no other piece.
    lines = [[run for run in line if run.text] or line[-1:] for line in lines]
    if len(lines) > 1 and not any(run.text for run in lines[-1]):
        lines.pop()
    return [line or [Run("")] for line in lines]


def _draw_gutter(draw: ImageDraw.ImageDraw, top: int, latent: int, begins: bool) -> None:
    """Draw the color of a line's first latent, and its number if a segment begins."""
    if latent == NO_LATENT:
        return
    color = COLORS[latent % len(COLORS)]
    draw.rectangle((0, top, GUTTER_WIDTH - 5, top + ROW_HEIGHT - 1), fill=color)
    if begins:
        draw.line((0, top, WIDTH, top), fill=color)
        _write(draw, (4, top + 1), f"z{latent}", GUTTER_WIDTH - 9, WHITE if color in DARK_COLORS else INK)


def _draw_line(draw: ImageDraw.ImageDraw, top: int, line: Sequence[Run]) -> None:
    """Draw a line's pieces, each on its latent's color, which continues to the edge for the last piece."""
    left, edge = float(GUTTER_WIDTH), WIDTH - MARGIN
    for i, run in enumerate(line):
        text = _clean(run.text)
        indent = (len(text) - len(text.lstrip(" "))) * SPACE_WIDTH if left == GUTTER_WIDTH else 0
        text = (text.lstrip(" ") if indent else text).replace(" ", "  ")
        width = indent + _font().getlength(text)
        right = WIDTH if i == len(line) - 1 or left + width > edge else left + width
        if run.latent != NO_LATENT:
            color = tinted(COLORS[run.latent % len(COLORS)], TINT)
            # One pixel below the top, where the line that begins a segment may be drawn.
            draw.rectangle((left, top + 1, right, top + ROW_HEIGHT - 1), fill=color)
        _write(draw, (left + indent, top + 1), text, edge - left - indent, FAINT if run.faint else INK)
        left += width
        if left > edge:
            break


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, room: float, ink: str) -> None:
    """Draw text at a point, cut with an ellipsis if it needs more than `room` pixels."""
    font, text = _font(), _clean(text)
    if font.getlength(text) > room:
        fits = bisect_left(range(1, len(text)), True, key=lambda n: font.getlength(text[:n] + "…") > room)
        text = text[:fits] + "…" if font.getlength("…") <= room else ""
    draw.text(at, text, fill=ink, font=font)


def _clean(text: str) -> str:
    """Make text drawable: tabs become spaces, unprintable characters question marks, and long text is cut."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:WIDTH].expandtabs(4))


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont)  # given a size, Pillow loads no other
    return font
