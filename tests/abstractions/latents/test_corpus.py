"""Lines share a type when they differ in names only, and traces become the arrays one writes down by hand."""

from __future__ import annotations

import builtins
import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ra3gym.abstractions.latents.corpus import encode_traces, line_template, prompt_words
from ra3gym.errors import DataError
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests
from ra3gym.tasks.idioms import IdiomsDomain

LINES = (
    "    {0} = [{1} for {1} in {0} if {1} % 2 == 0]\n",
    "for {0} in range(len({1})):\n",
    "        {0}.append({1}[:{2} + 1])\n",
    "    {0} = list(map(lambda {1}: {1} ** 2, {0}))\n",
    "    return {0}(\n",
    "    {0} = {{'a': {1}, **{2}}}  # why\n",
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: name not in keyword.kwlist and name not in dir(builtins)
)


@given(st.sampled_from(LINES), st.lists(NAMES, min_size=3, max_size=3, unique=True))
def test_renaming_changes_nothing(line: str, names: list[str]) -> None:
    assert line_template(line.format(*names)) == line_template(line.format("p", "q", "r"))


@given(st.sampled_from(LINES[:4]), NAMES, NAMES)
def test_merging_two_names_does_change_it(line: str, one: str, other: str) -> None:
    assert (line_template(line.format(one, other, "r")) == line_template(line.format(one, one, "r"))) == (one == other)


@pytest.mark.parametrize(
    ("line", "template"),
    [
        ("    total += v\n", "4 _0 += _1"),
        ("return b[a]\n", "0 return _0 [ _1 ]"),
        ("\tx.append(len(x))\n", "1 _0 . append ( len ( _0 ) )"),
        ("a.b.sort(key=abs)\n", "0 _0 . b . sort ( _1 = abs )"),
        ("    x = None if y else 'y'\n", "4 _0 = None if _1 else 'y'"),
        ("    foo(a,\n", "4 _0 ( _1 ,"),
    ],
)
def test_templates_by_hand(line: str, template: str) -> None:
    assert line_template(line) == template


@pytest.mark.parametrize("line", ["it's what we return", "that's where a begins", '"""Open', "x = '''never closed"])
def test_a_line_that_is_no_code_stands_for_itself(line: str) -> None:
    assert line_template(f"  {line}\n") == f"  2 {line}".strip()


def test_indent_is_part_of_a_line() -> None:
    assert line_template("    x = 1\n") != line_template("        x = 1\n")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("# evens square\ndef f(xs):\n", ["evens", "square"]),
        ("def f(xs):\n", []),
        ("x = 1  # aside\n", []),
        ("# a b\n  # c\nimport os\n#\n", ["a", "b", "c"]),
        ("", []),
    ],
)
def test_prompt_words(prompt: str, words: list[str]) -> None:
    assert prompt_words(prompt) == words


def trace(prompt: str, *steps: str) -> ExpertTrace:
    task = CodeTask("mine/0", prompt, "f", FunctionTests(((1,),), (1,)), "".join(steps))
    return ExpertTrace(task, steps)


def test_two_traces_by_hand() -> None:
    corpus = encode_traces(
        [
            trace("# up down up\ndef f(x):\n", "    y = x\n", "    return y\n"),
            trace("def f(n):\n", "    m = n\n", "    k = m\n", "    return k\n"),
            trace("# down\ndef f(n):\n", "    return n\n"),
        ]
    )
    assert corpus.templates == ("4 _0 = _1", "4 return _0")
    assert corpus.words == ("<background>", "<no prompt>", "up", "down")
    assert corpus.num_traces == 3
    assert corpus.offsets.tolist() == [0, 2, 5, 6]
    assert corpus.line_N.tolist() == [0, 1, 0, 0, 1, 1]
    assert corpus.previous_N.tolist() == [2, 0, 2, 0, 0, 2]  # 2: no line before
    pairs = list(zip(corpus.pair_previous_Y.tolist(), corpus.pair_line_Y.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert corpus.pair_N.tolist() == [2, 1, 2, 0, 1, 3]
    assert corpus.word_ids.tolist() == [0, 2, 3, 2, 1, 0, 3]
    assert corpus.word_offsets.tolist() == [0, 4, 5, 7]
    assert corpus.documented_M.tolist() == [True, False, True]


def test_pairs_give_back_lines_and_their_predecessors() -> None:
    traces = IdiomsDomain(length=3, num_compositions=10, num_held_out=1).traces(30)
    corpus = encode_traces(traces)
    assert (corpus.pair_line_Y[corpus.pair_N] == corpus.line_N).all()
    assert (corpus.pair_previous_Y[corpus.pair_N] == corpus.previous_N).all()
    assert (corpus.previous_N[corpus.offsets[:-1]] == len(corpus.templates)).all()
    lines = [line_template(step) for trace in traces for step in trace.steps]
    assert [corpus.templates[line] for line in corpus.line_N] == lines
    assert encode_traces([trace.without_planted() for trace in traces]).line_N.tolist() == corpus.line_N.tolist()


def test_nothing_to_encode() -> None:
    with pytest.raises(DataError, match="at least one expert trace"):
        encode_traces([])
    with pytest.raises(DataError, match="trace 'mine/0' has no lines"):
        encode_traces([trace("def f():\n")])
