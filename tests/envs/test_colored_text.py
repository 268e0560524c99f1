"""`render_mode="ansi"`: the program so far as text, segments in the colors of their latents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageColor
from rich.text import Text

from ra3gym.abstractions.latents.colors import COLORS
from ra3gym.envs.colored_text import TINT, Run, ansi_text, tinted

CODE = re.compile(r"\x1b\[[0-9;]*m")
RUNS = st.lists(st.builds(Run, st.text(st.characters() | st.sampled_from("\n\t\x1b \x00")), st.integers(-1, 40)))


@pytest.fixture
def colors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)


def background(latent: int) -> str:
    red, green, blue = tinted(COLORS[latent % len(COLORS)], TINT)
    return f"\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m"


def test_each_line_has_the_color_of_its_latent(colors: None) -> None:
    runs = [Run("def f(x):\n"), Run("    y = x\n\n    y += 1", 2), Run("; return y\n", 9)]
    two, nine, reset = background(2), background(1), "\x1b[0m"  # there are eight colors
    expected = f"def f(x):\n{two}    y = x{reset}\n\n{two}    y += 1{reset}{nine}; return y{reset}\n"
    assert ansi_text(runs) == expected


@pytest.mark.parametrize("color", COLORS)
def test_colors_are_mixed_with_white(color: str) -> None:
    assert tinted(color, 1.0) == ImageColor.getrgb(color)
    assert tinted(color, 0.0) == (255, 255, 255)
    assert tinted(color, TINT) == tuple(round(255 - TINT * (255 - part)) for part in ImageColor.getrgb(color))


@given(runs=RUNS)
def test_colors_change_nothing_else(runs: list[Run]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        plain = ansi_text(runs)
        patch.setenv("NO_COLOR", "")  # as good as unset, as the convention has it
        colored = ansi_text(runs)
    assert CODE.sub("", colored) == plain
    assert "\x1b" not in plain
    assert len(plain) == sum(len(run.text) for run in runs)
    assert ("\x1b" in colored) == any(run.text.strip("\n") and run.latent >= 0 for run in runs)


def test_what_a_model_writes_commands_no_terminal(colors: None) -> None:
    assert ansi_text([Run("a\x1b[2Jb\r\x07\tc\x9b1m\n")]) == "a?[2Jb??\tc?1m\n"


# Environments


@pytest.fixture
def options(tiny_model_folder: Path) -> dict[str, Any]:
    return {"model": str(tiny_model_folder), "max_new_tokens": 24, "render_mode": "ansi"}


def test_both_levels_color_their_latents(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = gym.make("ra3gym/TokenCode-v0", action_space="full", **options)
    latents = gym.make("ra3gym/LatentCode-v0", segment_tokens=1, **options)
    ids = latents.unwrapped._batch.latent_ids
    for env, action in ((tokens, ids[2]), (latents, 2)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        env.reset(seed=0)
        assert "\x1b" not in env.render()
        env.step(np.int64(action))
        colored = env.render()
        assert f"{background(2)}<|z2|>" in colored
        assert colored.endswith("\x1b[0m\n")
        monkeypatch.setenv("NO_COLOR", "1")
        assert env.render() == CODE.sub("", colored)
        env.close()


def test_lines_of_a_trace_have_the_colors_of_their_latents(
    options: dict[str, Any], colors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del options["max_new_tokens"]
    env = gym.make("ra3gym/TraceInference-v0", num_traces=2, **options)
    env.reset(seed=0)
    assert "\x1b" not in env.render()
    env.step(np.int64(1))
    env.step(np.int64(99))  # no latent, and no color
    status, first, second, *_ = env.render().splitlines()
    assert "\x1b" not in status + second
    assert re.fullmatch(rf"z1 \| {re.escape(background(1))}[^\x1b]+\x1b\[0m", first)
    assert second.startswith(" ? | ")


def test_rich_reads_the_colors_back(colors: None) -> None:
    text = Text.from_ansi(ansi_text([Run("plain\n"), Run("colored", 0)]))
    assert text.plain == "plain\ncolored"
    (span,) = text.spans
    assert text.plain[span.start : span.end] == "colored"
    assert span.style.bgcolor.triplet == tinted(COLORS[0], TINT)
