"""The legend counts what is there, shows what sets a latent apart, and gives neighbors different looks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra3gym.abstractions.latents.document import Document
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.experiments.report.latent_legend import COLORS, STROKES, TYPICAL_LINES, describe_latents


def annotated(*lines: tuple[int, bool, str], gains: tuple[float, ...] | None = None, name: str = "mine/0") -> Document:
    path = LatentPath(tuple(z for z, _, _ in lines), tuple(switch for _, switch, _ in lines))
    return Document(
        task_id=name,
        prompt="",
        text="".join(line for _, _, line in lines),
        lines=tuple(line for _, _, line in lines),
        ids=tuple(range(len(lines) + 1)),
        prompt_tokens=(0, 0),
        latent_tokens=tuple((n, n) for n, (_, switch, _) in enumerate(lines) if switch),
        line_tokens=tuple((n, n + 1) for n in range(len(lines))),
        path=path,
        gains=gains,
    )


def test_counts_by_hand() -> None:
    traces = [
        annotated(
            (3, True, "    a = 1\n"), (3, False, "    b = a\n"), (0, True, "    return b\n"), gains=(1.0, 2.0, 0.5)
        ),
        annotated((0, True, "    return c\n"), gains=(-0.5,)),
        annotated((3, True, "    a = 1\n"), (3, True, "    a = 1\n"), gains=(0.0, 1.0)),
    ]
    legend = describe_latents(traces, [("leave",), (), (), ("set", "assign"), ()])
    assert list(legend) == [3, 0]
    three, zero = legend[3], legend[0]
    assert (three.names, three.lines, three.segments, three.duration) == (("set", "assign"), 4, 3, 4 / 3)
    assert (zero.names, zero.lines, zero.segments, zero.duration) == (("leave",), 2, 2, 1.0)
    assert (three.share, zero.share) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (three.gain, zero.gain) == (pytest.approx(1.0), pytest.approx(0.0))
    assert three.typical == ("a = 1", "b = a")
    # Two spellings of one kind of line, equally frequent: the first one met.
    assert zero.typical == ("return b",)
    assert three.color != zero.color


def test_typical_lines_set_a_latent_apart() -> None:
    """`out = []` is the most frequent line of both, and says nothing about either."""
    traces = [
        *[annotated((0, True, "out = []\n"), (0, False, "out = []\n"), (0, False, "x = x + 1\n"))] * 5,
        *[annotated((1, True, "out = []\n"), (1, False, "out = []\n"), (1, False, "x = -x\n"))] * 5,
    ]
    legend = describe_latents(traces, ((), ()))
    assert (legend[0].typical, legend[1].typical) == (("x = x + 1",), ("x = -x",))
    alone = describe_latents(traces[:1], ())
    assert alone[0].typical == ("out = []", "x = x + 1")
    assert alone[0].gain is None
    assert alone[0].names == ()


latents = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(latents)
def test_shares_and_looks(corpus: list[list[int]]) -> None:
    traces = [annotated(*((z, True, f"x = {z}\n") for z in path)) for path in corpus]
    legend = describe_latents(traces, ())
    assert sum(info.share for info in legend.values()) == pytest.approx(1.0)
    assert [info.share for info in legend.values()] == sorted((info.share for info in legend.values()), reverse=True)
    assert all(info.color in COLORS and info.stroke in STROKES for info in legend.values())
    assert all(1 <= len(info.typical) <= TYPICAL_LINES for info in legend.values())
    looks = [(info.color, info.stroke) for info in legend.values()]
    if len(legend) <= len(COLORS):
        assert len({color for color, _ in looks}) == len(legend)
    assert list(describe_latents(traces, ()).values()) == list(legend.values())


def test_neighbors_get_different_colors() -> None:
    """Twenty latents in a ring need two colors; eight are more than enough."""
    ring = [*range(20), 0]
    legend = describe_latents([annotated(*((z, True, "x\n") for z in ring))], ())
    assert all(legend[a].color != legend[b].color for a, b in pairwise(ring))
    assert len({(info.color, info.stroke) for info in legend.values()}) == 20


def test_colors_differ_without_red_or_green() -> None:
    """Okabe and Ito's colors under simulated deuteranopia (Viénot et al. 1999) differ by more than a shade."""
    linear = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in COLORS]) ** 2.2
    deuteranopia = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    seen = np.clip(linear @ deuteranopia.T, 0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(seen[:, None] - seen[None, :], axis=-1)[np.triu_indices(len(COLORS), 1)]
    assert apart.min() > 0.1
