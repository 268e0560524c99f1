"""`render_mode="rgb_array"`: frames of one size that say what an episode has come to, in every environment."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import RenderCollection
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageColor

from ra3gym.abstractions.latents.colors import COLORS, DARK_COLORS
from ra3gym.envs.colored_text import TINT, Run
from ra3gym.envs.frames import (
    GUTTER_WIDTH,
    HEIGHT,
    INK,
    MARGIN,
    ROW_HEIGHT,
    ROWS,
    STATUS_HEIGHT,
    WHITE,
    WIDTH,
    Frame,
    program_frame,
    states_frame,
)

SHAPE = (HEIGHT, WIDTH, 3)
NAMES = ["TokenCode", "LatentCode", "TraceInference", "OptionMDP"]


def row_of(frame: Frame, row: int) -> Frame:
    """The pixels of one line of text."""
    top = STATUS_HEIGHT + MARGIN // 2 + row * ROW_HEIGHT
    return frame[top : top + ROW_HEIGHT]


def gutters(frame: Frame) -> list[tuple[int, ...]]:
    """The color beside each line, at the right end of its gutter."""
    return [tuple(row_of(frame, row)[ROW_HEIGHT // 2, GUTTER_WIDTH - 8].tolist()) for row in range(ROWS)]


def luminance(color: tuple[float, ...]) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """WCAG's contrast ratio, 1 to 21."""
    low, high = sorted(luminance(tuple(part / 255 for part in color)) for color in (first, second))
    return (high + 0.05) / (low + 0.05)


# Programs


def test_segments_stand_on_their_latents_colors() -> None:
    frame = program_frame("a task", [Run("def f(x):\n"), Run("    y = x\n    z = y\n", 2), Run("    return z\n", 9)])
    two, nine = (ImageColor.getrgb(COLORS[z]) for z in (2, 1))  # there are eight colors
    white = ImageColor.getrgb(WHITE)
    assert gutters(frame)[:5] == [white, two, two, nine, white]
    assert (frame.shape, frame.dtype) == (SHAPE, np.uint8)
    for row, color in ((1, two), (3, nine)):
        tint = [round(255 - TINT * (255 - part)) for part in color]
        assert row_of(frame, row)[ROW_HEIGHT // 2, WIDTH - 1].tolist() == tint
    # The second line of a segment does not say its number again.
    number = slice(2, GUTTER_WIDTH - 8)
    assert len(np.unique(row_of(frame, 1)[1:, number].reshape(-1, 3), axis=0)) > 1
    assert len(np.unique(row_of(frame, 2)[1:, number].reshape(-1, 3), axis=0)) == 1


def test_a_segment_that_begins_within_a_line_has_its_number_on_the_next() -> None:
    frame = program_frame("a task", [Run("a = 1; ", 0), Run("b = 2\nc = 3\n", 4)])
    assert gutters(frame)[:2] == [ImageColor.getrgb(COLORS[z]) for z in (0, 4)]
    assert len(np.unique(row_of(frame, 1)[1:, 2 : GUTTER_WIDTH - 8].reshape(-1, 3), axis=0)) > 1


@pytest.mark.parametrize("color", COLORS)
def test_text_is_readable_on_every_color(color: str) -> None:
    """At least 7 to 1 in the program, 4.5 to 1 in the numbers: WCAG's levels AAA and AA."""
    red, green, blue = ImageColor.getrgb(color)
    tint = tuple(round(255 - TINT * (255 - part)) for part in (red, green, blue))
    assert contrast(tint, ImageColor.getrgb(INK)) >= 7.0
    assert contrast((red, green, blue), ImageColor.getrgb(WHITE if color in DARK_COLORS else INK)) >= 4.5


def test_equal_programs_have_equal_frames_and_each_line_counts() -> None:
    lines = [Run(f"    x{i} = {i}\n", i // 2) for i in range(60)]
    frames = [program_frame("a task", lines[:n]) for n in range(61)]
    for n in range(60):
        assert (frames[n] == program_frame("a task", lines[:n])).all()
        assert (frames[n] != frames[n + 1]).any()
    assert (frames[3] != program_frame("another", lines[:3])).any()


def test_long_programs_scroll() -> None:
    lines = [Run(f"line {i}\n") for i in range(ROWS + 10)]
    frame = program_frame("a task", lines)
    # The last lines are shown, after one row that says how many are left out.
    short = program_frame("a task", lines[-(ROWS - 1) :])
    for row in range(1, ROWS):
        assert (row_of(frame, row) == row_of(short, row - 1)).all()
    changed = [Run("another\n"), *lines[1:]]
    assert (frame == program_frame("a task", changed)).all()
    # With a focus, the lines around it are.
    focused = program_frame("a task", lines, focus=2)
    top = program_frame("a task", lines[:ROWS])
    for row in range(ROWS - 1):
        assert (row_of(focused, row) == row_of(top, row)).all()
    assert (focused != program_frame("a task", changed, focus=2)).any()


def test_long_lines_are_cut() -> None:
    first, second = ("    " + "abc " * 100 + end for end in ("", "changed"))
    for status, text in ((first, "x"), ("s", first)):
        assert (program_frame(status, [Run(text)]) == program_frame(status.replace(first, second), [Run(text)])).all()
    assert (program_frame("s", [Run(first, 1)]) == program_frame("s", [Run(second, 1)])).all()
    # Nothing is written into the margin at the right.
    assert (program_frame("s", [Run(first)])[STATUS_HEIGHT:, WIDTH - MARGIN + 1 :] == 255).all()


@given(
    status=st.text(),
    runs=st.lists(st.tuples(st.text(alphabet=st.characters() | st.sampled_from("\n\t\r ")), st.integers(-1, 200))),
    focus=st.none() | st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_any_text_can_be_drawn(status: str, runs: list[tuple[str, int]], focus: int | None) -> None:
    frame = program_frame(status, [Run(*run) for run in runs], focus)
    assert (frame.shape, frame.dtype) == (SHAPE, np.uint8)


def test_lone_surrogates_and_control_characters_are_question_marks() -> None:
    shown = program_frame("s", [Run("a\ud800b\x00c\x1b[31m")])
    assert (shown == program_frame("s", [Run("a?b?c?[31m")])).all()


# States


@pytest.mark.parametrize("num_states", [1, 2, 24, 1000, 30_000])
def test_states_of_any_number_fit(num_states: int) -> None:
    value_S = np.linspace(0.0, 1.0, num_states)
    terminal_S = np.arange(num_states) == num_states - 1
    frame = states_frame("s", value_S, terminal_S, 0)
    assert (frame.shape, frame.dtype) == (SHAPE, np.uint8)
    if num_states > 1:
        assert (frame != states_frame("s", value_S, terminal_S, 1)).any()


# Environments


def options_of(name: str, folder: Path) -> dict[str, Any]:
    if name == "OptionMDP":
        return {}
    if name == "TraceInference":
        return {"model": str(folder), "num_traces": 3}
    return {"model": str(folder), "max_new_tokens": 24} | ({"segment_tokens": 4} if name == "LatentCode" else {})


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_finds_nothing_to_say(name: str, tiny_model_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(f"ra3gym/{name}-v0", render_mode="rgb_array", **options_of(name, tiny_model_folder))
        check_env(env.unwrapped)
        env.close()


@pytest.mark.parametrize("name", NAMES)
def test_episodes_frames_are_of_one_size_and_repeat_with_the_seed(name: str, tiny_model_folder: Path) -> None:
    def film(seed: int) -> list[Frame]:
        env = RenderCollection(
            gym.make(f"ra3gym/{name}-v0", render_mode="rgb_array", **options_of(name, tiny_model_folder))
        )
        env.action_space.seed(seed)
        _, info = env.reset(seed=seed)
        for _ in range(8):
            _, _, terminated, truncated, info = env.step(env.action_space.sample(info["action_mask"]))
            if terminated or truncated:
                break
        frames: list[Frame] = env.render()
        env.close()
        return frames

    first, again, other = film(1), film(1), film(2)
    assert all((frame.shape, frame.dtype) == (SHAPE, np.uint8) for frame in first)
    assert [frame.tobytes() for frame in first] == [frame.tobytes() for frame in again]
    assert [frame.tobytes() for frame in first] != [frame.tobytes() for frame in other]
    for before, after in pairwise(first):
        assert (before != after).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_environment_renders_what_single_ones_do(name: str, tiny_model_folder: Path) -> None:
    options = options_of(name, tiny_model_folder) | {"render_mode": "rgb_array"}
    ours = gym.make_vec(f"ra3gym/{name}-v0", 2, vectorization_mode="vector_entry_point", **options)
    theirs = SyncVectorEnv([lambda: gym.make(f"ra3gym/{name}-v0", **options)] * 2)
    for envs in (ours, theirs):
        envs.reset(seed=3)
    actions = np.random.default_rng(0).integers(4, size=(5, 2))
    for action_E in actions:
        frames, expected = ours.render(), theirs.render()
        assert frames is not None
        assert expected is not None
        assert len(frames) == 2
        for frame, single in zip(frames, expected, strict=True):
            assert isinstance(frame, np.ndarray)
            # The single option MDP's line of status names its last action, too.
            top = STATUS_HEIGHT if name == "OptionMDP" else 0
            np.testing.assert_array_equal(frame[top:], single[top:])
        for envs in (ours, theirs):
            envs.step(action_E)
    for envs in (ours, theirs):
        envs.close()


def test_latents_in_code_are_colored_and_left_out_of_the_text(tiny_model_folder: Path) -> None:
    """TokenCode colors the latents that it has written, LatentCode each of its segments; the prompt has no color."""
    options = options_of("TokenCode", tiny_model_folder) | {"render_mode": "rgb_array"}
    tokens = gym.make("ra3gym/TokenCode-v0", action_space="full", **options)
    latents = gym.make("ra3gym/LatentCode-v0", segment_tokens=1, **options)
    ids = latents.unwrapped._batch.latent_ids
    for env, action in ((tokens, ids[2]), (latents, 2)):
        env.reset(seed=0)
        white = ImageColor.getrgb(WHITE)
        assert set(gutters(env.render())) == {white}
        env.step(np.int64(action))
        if env is tokens:  # a latent without text has nothing to color
            assert set(gutters(env.render())) == {white}
            env.step(np.int64(tokens.unwrapped.problem.loaded.tokenizer.encode("x")[0]))
        assert set(gutters(env.render())) == {white, ImageColor.getrgb(COLORS[2])}
        env.close()
