"""Controls keep what they should (segments, usage, lines) and nothing of what latents mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training.e_steps.controls import ControlEStep
from ra3gym.agents.mid_training.e_steps.exact import ExactEStep
from ra3gym.agents.mid_training.e_steps.macro_actions import MacroEStep, merge_neighbors
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.agents.mid_training.e_steps.protocol import EStep
from ra3gym.agents.mid_training.e_steps.statement_kinds import STATEMENT_KINDS, AstEStep
from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests

SMALL = ExactEStep(CodebookConfig(num_latents=8, restarts=1, iterations=3))


def make_trace(prompt: str, program: str) -> ExpertTrace:
    steps = tuple(program.splitlines(keepends=True))
    return ExpertTrace(CodeTask("mine/0", prompt, "f", FunctionTests((), ()), program), steps)


def segments(path: LatentPath) -> list[tuple[int, int]]:
    """(latent, number of lines) of each segment."""
    starts = [*(i for i, switch in enumerate(path.switches) if switch), len(path.switches)]
    return [(path.latents[a], b - a) for a, b in pairwise(starts)]


@pytest.mark.parametrize("control", ["pause", "random", "shuffled"])
def test_spoiled_latents_keep_the_segments(control: str, traces: list[ExpertTrace]) -> None:
    inferred = SMALL.infer(traces, np.random.default_rng(0))
    found = ControlEStep(control, SMALL).infer(traces, np.random.default_rng(0))
    assert [path.switches for path in found.paths] == [path.switches for path in inferred.paths]
    assert found.metrics["evidence"] == inferred.metrics["evidence"]
    assert found.gains is None
    assert found.paths != inferred.paths
    assert ControlEStep(control, SMALL).infer(traces, np.random.default_rng(0)).paths == found.paths


def test_what_each_control_leaves_of_the_latents(traces: list[ExpertTrace]) -> None:
    around = OracleEStep()
    usage = Counter(z for path in around.infer(traces, np.random.default_rng(0)).paths for z in path.segment_latents)

    paused = ControlEStep("pause", around).infer(traces, np.random.default_rng(0))
    assert (paused.num_latents, paused.names) == (1, ((),))
    assert {z for path in paused.paths for z in path.latents} == {0}

    permuted = ControlEStep("shuffled", around).infer(traces, np.random.default_rng(0))
    assert Counter(z for path in permuted.paths for z in path.segment_latents) == usage

    drawn = ControlEStep("random", around).infer(traces, np.random.default_rng(0))
    found = Counter(z for path in drawn.paths for z in path.segment_latents)
    assert len(found) == drawn.num_latents > len(usage)


def test_an_unknown_control() -> None:
    with pytest.raises(UnknownNameError, match="unknown control 'pauses'"):
        ControlEStep("pauses", SMALL)


lines = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6)


@given(lines, st.integers(0, 12), st.integers(1, 3))
def test_a_macro_is_always_the_same_lines_of_one_trace(corpus: list[list[int]], merges: int, min_count: int) -> None:
    line_N = np.array([line for trace in corpus for line in trace])
    offsets = np.cumsum([0, *map(len, corpus)])
    macro_S, length_S = merge_neighbors(line_N, offsets, merges, min_count)
    ends = np.cumsum(length_S)
    assert set(offsets[1:]) <= set(ends.tolist())
    spelled: dict[int, tuple[int, ...]] = {}
    for macro, end, length in zip(macro_S.tolist(), ends, length_S, strict=True):
        run = tuple(line_N[end - length : end].tolist())
        assert spelled.setdefault(macro, run) == run
    assert len({macro for macro in macro_S.tolist() if macro > line_N.max()}) <= merges


def merged(corpus: Sequence[Sequence[int]], merges: int, min_count: int = 1) -> tuple[list[int], list[int]]:
    line_N = np.array([line for trace in corpus for line in trace])
    macro_S, length_S = merge_neighbors(line_N, np.cumsum([0, *map(len, corpus)]), merges, min_count)
    return macro_S.tolist(), length_S.tolist()


def test_merges_by_hand() -> None:
    corpus = [[0, 1, 2, 0, 1], [0, 1, 2], [2, 0]]
    assert merged(corpus, 0) == ([0, 1, 2, 0, 1, 0, 1, 2, 2, 0], [1] * 10)
    assert merged(corpus, 1) == ([3, 2, 3, 3, 2, 2, 0], [2, 1, 2, 2, 1, 1, 1])
    assert merged(corpus, 2) == ([4, 3, 4, 2, 0], [3, 2, 3, 1, 1])
    assert merged(corpus, 9, min_count=2) == merged(corpus, 2)
    assert merged([[5, 5, 5, 5, 5], [5]], 1) == ([6, 6, 5, 5], [2, 2, 1, 1])
    # Four overlapping places for (0, 0) are two pairs: (1, 2), which stands three times, comes first.
    assert merged([[0, 0, 0, 0, 0], [1, 2], [1, 2], [1, 2]], 1) == ([0] * 5 + [3] * 3, [1] * 5 + [2] * 3)


def test_macros_as_latents() -> None:
    loop = "    out = []\n    for v in xs:\n        out.append(v)\n"
    other = "    res = []\n    for w in ys:\n        res.append(w)\n"
    corpus = [make_trace("# copy\n", loop + "    return out\n"), make_trace("# copy\n", other), make_trace("", loop)]
    found = MacroEStep(num_latents=2, merges=8, min_count=3).infer(corpus, np.random.default_rng(0))
    assert [segments(path) for path in found.paths] == [[(0, 3), (1, 1)], [(0, 3)], [(0, 3)]]
    assert found.names == (("copy",), ())
    assert found.metrics["macros"] == 2
    assert found.metrics["shared"] == 0


def test_rare_macros_share_the_last_latent(traces: list[ExpertTrace]) -> None:
    wide = MacroEStep(num_latents=500).infer(traces, np.random.default_rng(0))
    narrow = MacroEStep(num_latents=5).infer(traces, np.random.default_rng(0))
    assert [path.switches for path in narrow.paths] == [path.switches for path in wide.paths]
    usage = Counter(z for path in wide.paths for z in path.segment_latents)
    assert [usage[z] for z in range(len(usage))] == sorted(usage.values(), reverse=True)
    assert all(
        min(z, 4) == y
        for a, b in zip(wide.paths, narrow.paths, strict=True)
        for z, y in zip(a.latents, b.latents, strict=True)
    )
    assert narrow.metrics["shared"] == pytest.approx(1 - sum(usage[z] for z in range(4)) / usage.total())
    longer = MacroEStep(merges=200).infer(traces, np.random.default_rng(0))
    assert sum(map(len, (path.segment_latents for path in longer.paths))) <= usage.total()


@pytest.mark.parametrize("options", [{"num_latents": 1}, {"merges": -1}, {"min_count": 0}])
def test_macros_refuse_what_makes_no_sense(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        MacroEStep(**options)


def kinds(prompt: str, program: str) -> list[tuple[str, int]]:
    found = AstEStep().infer([make_trace(prompt, program)], np.random.default_rng(0))
    return [(STATEMENT_KINDS[z], length) for z, length in segments(found.paths[0])]


def test_statement_kinds_by_hand() -> None:
    program = """\
    '''A docstring
    # with what looks like a comment
    '''
    # a remark stays with the line before
    total = 0
    other = 1
    for v in xs:
        if v > 0: total += v; total += 1
        else:
            total = max(
                total,

                v,
            )

    else:
        return None
    @cache
    def g(): return 1
    return total
"""
    assert kinds("# sum\ndef f(xs):\n", program) == [
        ("Expr", 4),
        ("Assign", 1),
        ("Assign", 1),
        ("For", 1),
        ("If", 2),
        ("Assign", 6),
        ("For", 1),
        ("Return", 1),
        ("FunctionDef", 2),
        ("Return", 1),
    ]


def test_a_trace_may_start_in_the_middle() -> None:
    assert kinds("def f(xs):\n    return sorted(\n", "        xs,\n    )\n") == [("Return", 2)]
    assert kinds("def f(xs):\n    return ", "sorted(\n        xs,\n    )\n") == [("Return", 3)]
    assert kinds("def f(xs):\n", "    # first\n\n    pass\n") == [("Other", 2), ("Pass", 1)]
    assert kinds("", "import os\n") == [("Import", 1)]
    assert kinds("def f(x):\n", "    return x") == [("Return", 1)]


@pytest.mark.parametrize(
    "program", ["    return (\n    x\n", "    x = '\0'\n    y\n", f"    x = {'(' * 3000}\n    y\n"]
)
def test_what_does_not_parse_is_one_segment(program: str) -> None:
    assert kinds("def f(x):\n", program) == [("Other", 2)]
    corpus = [make_trace("def f(x):\n", program), make_trace("def f(x):\n", "    return '\\d'\n")]
    found = AstEStep().infer(corpus, np.random.default_rng(0))
    assert found.metrics["unparsed"] == 0.5


def test_statement_kinds_of_a_corpus(traces: list[ExpertTrace]) -> None:
    found = AstEStep().infer(traces, np.random.default_rng(0))
    assert found.metrics["unparsed"] == 0
    assert found.num_latents == len(STATEMENT_KINDS)
    assert [len(path.latents) for path in found.paths] == [len(trace.steps) for trace in traces]
    assert any(found.names)
    return_ = STATEMENT_KINDS.index("Return")
    assert all(path.latents[-1] == return_ for path in found.paths)


@pytest.mark.parametrize("control", [MacroEStep(), AstEStep(), ControlEStep("pause", SMALL)])
def test_controls_refuse_nothing_and_empty_traces(control: EStep, traces: list[ExpertTrace]) -> None:
    with pytest.raises(DataError, match="no traces"):
        control.infer([], np.random.default_rng(0))
    with pytest.raises(DataError, match="trace 'mine/0' has no lines"):
        control.infer([*traces[:2], make_trace("def f(x):\n", "")], np.random.default_rng(0))


def test_one_line(traces: list[ExpertTrace]) -> None:
    one = [make_trace("", "pass\n")]
    assert MacroEStep().infer(one, np.random.default_rng(0)).paths == (LatentPath((0,), (True,)),)
    assert AstEStep().infer(one, np.random.default_rng(0)).paths[0].latents == (STATEMENT_KINDS.index("Pass"),)
