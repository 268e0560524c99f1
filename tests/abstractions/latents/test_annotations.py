"""The controls change what latents say and leave how often, where and how many."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ra3gym.abstractions.latents.annotations import Annotations, names_by_company
from ra3gym.abstractions.latents.controls import paused, random_latents, shuffled
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import DataError
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests

NUM_LATENTS = 5


@st.composite
def annotations(draw: st.DrawFn) -> Annotations:
    """Paths as segments of (latent, length): neighbors may share their latent."""
    segment = st.tuples(st.integers(0, NUM_LATENTS - 1), st.integers(1, 4))
    paths = []
    for segments in draw(st.lists(st.lists(segment, min_size=1, max_size=5), min_size=1, max_size=5)):
        latents = tuple(z for z, length in segments for _ in range(length))
        switches = tuple(first for _, length in segments for first in [True] + [False] * (length - 1))
        paths.append(LatentPath(latents, switches))
    names = tuple((f"word{z}",) for z in range(NUM_LATENTS))
    return Annotations(tuple(paths), names, {"evidence": -1.0})


def usage(annotations: Annotations) -> Counter[int]:
    return Counter(z for path in annotations.paths for z in path.segment_latents)


def same_segments(one: Annotations, other: Annotations) -> bool:
    held = all(
        z == before
        for path in other.paths
        for z, before, switch in zip(path.latents[1:], path.latents, path.switches[1:], strict=False)
        if not switch
    )
    return held and [path.switches for path in one.paths] == [path.switches for path in other.paths]


@given(annotations(), st.integers(0, 2**32))
def test_shuffled_keeps_segments_and_usage(inferred: Annotations, seed: int) -> None:
    control = shuffled(inferred, np.random.default_rng(seed))
    assert same_segments(inferred, control)
    assert usage(control) == usage(inferred)
    assert (control.names, control.metrics, control.num_latents) == (inferred.names, inferred.metrics, NUM_LATENTS)
    assert shuffled(inferred, np.random.default_rng(seed)) == control


@given(annotations(), st.integers(0, 2**32))
def test_random_keeps_segments(inferred: Annotations, seed: int) -> None:
    control = random_latents(inferred, np.random.default_rng(seed))
    assert same_segments(inferred, control)
    assert control.names == inferred.names
    assert all(0 <= z < NUM_LATENTS for path in control.paths for z in path.latents)
    assert random_latents(inferred, np.random.default_rng(seed)) == control


def test_both_lose_the_meaning() -> None:
    """Latent z stands in trace z only; afterwards it stands anywhere, and random latents are used alike."""
    count, copies = 4, 250
    paths = tuple(LatentPath((z, z), (True, False)) for z in [0, 0, 0, 1, 2, 3] for _ in range(copies))
    inferred = Annotations(paths, ((),) * count)
    rng = np.random.default_rng(0)
    for control, expected in [(shuffled(inferred, rng), 1 / 2), (random_latents(inferred, rng), 1 / 4)]:
        share = np.mean([path.latents[0] == 0 for path in control.paths[: 3 * copies]])
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / (3 * copies))


def test_gains_belong_to_paths() -> None:
    paths = (LatentPath((0, 0), (True, False)), LatentPath((1,), (True,)))
    inferred = Annotations(paths, ((), ()), gains=((0.5, -0.1), (2.0,)))
    for control in (shuffled(inferred, np.random.default_rng(0)), random_latents(inferred, np.random.default_rng(0))):
        assert control.gains is None
    with pytest.raises(DataError, match="gains for 1 lines in trace 0, but the paths have 2"):
        Annotations(paths, ((), ()), gains=((0.5,), (2.0,)))
    with pytest.raises(DataError, match="gains for 1 traces, but the paths have 2"):
        Annotations(paths, ((), ()), gains=((0.5, 0.1),))


def test_a_word_names_the_latent_it_goes_with_most() -> None:
    def trace(prompt: str, lines: int) -> ExpertTrace:
        return ExpertTrace(CodeTask("mine/0", prompt, "f", FunctionTests((), ())), ("    pass\n",) * lines)

    traces = [trace("# up\n", 2), trace("# down up\n", 3), trace("# down\n", 2), trace("def f(n):\n", 1)]
    paths = [
        LatentPath((2, 0), (True, True)),
        LatentPath((1, 2, 0), (True, True, True)),
        LatentPath((1, 0), (True, True)),
        LatentPath((3,), (True,)),
    ]
    assert names_by_company(traces, paths, 4) == ((), ("down",), ("up",), ())
    assert names_by_company(traces[3:], paths[3:], 4) == ((), (), (), ())


COMMENTED = Annotations(
    (LatentPath((0, 1, 1, 2), (True, True, False, True)),), ((), ("add",), ()), comments=("", "# add", "#")
)


def test_a_rationale_latent_is_a_comment_line_with_the_steps_indent() -> None:
    steps = ("    a = 1\n", "    a += 1\n", "    a += 2\n", "return a\n")
    assert COMMENTED.marks(0, steps) == ["", "    # add\n", "", "#\n"]
    tokens = Annotations(COMMENTED.paths, COMMENTED.names)
    assert tokens.marks(0, steps) == ["<|z0|>", "<|z1|>", "", "<|z2|>"]


def test_controls_keep_the_comments() -> None:
    rng = np.random.default_rng(0)
    assert shuffled(COMMENTED, rng).comments == random_latents(COMMENTED, rng).comments == COMMENTED.comments


@given(annotations(), st.integers(0, 2**32))
def test_paused_says_nothing_and_draws_nothing(inferred: Annotations, seed: int) -> None:
    rng = np.random.default_rng(seed)
    control = paused(inferred, rng)
    assert same_segments(inferred, control)
    assert (control.names, control.tokens) == (((),), ("<|pause|>",))
    assert {z for path in control.paths for z in path.latents} == {0}
    assert rng.integers(2**32) == np.random.default_rng(seed).integers(2**32)


def test_a_pause_stands_where_a_comment_would() -> None:
    steps = ("    a = 1\n", "    a += 1\n", "    a += 2\n", "return a\n")
    control = paused(COMMENTED, np.random.default_rng(0))
    assert control.marks(0, steps) == ["", "<|pause|>", "", "<|pause|>"]


@pytest.mark.parametrize(
    ("comments", "message"),
    [
        (("# one",), "1 comments for 3 latents"),
        (("# one", "two", ""), "the comment 'two' must be '#'"),
        (("# one", "# two\n", ""), "on one line"),
    ],
)
def test_what_is_no_comment_is_refused(comments: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Annotations(COMMENTED.paths, COMMENTED.names, comments=comments)
