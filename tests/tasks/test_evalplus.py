"""EvalPlus' tests compare by the rules of EvalPlus' own grader, and their messages say which input failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.tasks.public.evalplus_rules import EVALPLUS_ORACLES, evalplus_same, evalplus_shown
from ra3gym.verify import Judge, Limits, Status, Verdict

# EvalPlus' template, with the comparison that never asserts what it computes (as for Mbpp/737, 787 and 794).
TEMPLATE = """import numpy as np
from math import inf

def assertion(out, exp, atol):
    exact_match = out == exp

inputs = {inputs}
results = {results}
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion({function}(*inp), exp, {atol})
"""


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1, limits=Limits(seconds=4.0)) as judge:
        yield judge


def mbpp_plus(folder: Path, function: str, inputs: list[Any], results: list[Any], atol: float = 0) -> CodeTask:
    row = {
        "task_id": 1,
        "prompt": "Write it.",
        "code": f"def {function}(*arguments):\n    pass\n",
        "test_imports": ["import math"],
        "test_list": [f"assert {function}(1) == 1"],
        "test": TEMPLATE.format(function=function, inputs=inputs, results=results, atol=atol),
    }
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(row))
    (task,) = load_tasks("mbpp+", path=file)
    return task


def graded(judge: Judge, task: CodeTask, source: str) -> Verdict:
    (verdict,) = judge.grade([(task, source)])
    return verdict


@pytest.mark.parametrize("function", ["plain", "check_str", "check"])
def test_a_comparison_that_asserts_nothing_is_replaced(tmp_path: Path, judge: Judge, function: str) -> None:
    task = mbpp_plus(tmp_path, function, [["a"], ["b"]], [True, False])
    assert graded(judge, task, f"def {function}(s):\n    return s == 'a'\n").passed
    assert graded(judge, task, f"def {function}(s):\n    return None\n").status is Status.WRONG_ANSWER


def test_the_message_says_input_expected_output(tmp_path: Path, judge: Judge) -> None:
    task = mbpp_plus(tmp_path, "f", [[[1, 2], "a"], [[3] * 10**5, "b"]], [[1, 2], [3] * 10**5])
    wrong = graded(judge, task, "def f(xs, s):\n    xs.pop()\n    return xs\n")
    assert (wrong.status, wrong.message) == (Status.WRONG_ANSWER, "expected [1, 2], got [1] for ([1, 2], 'a')")
    wrong = graded(judge, task, "def f(xs, s):\n    return xs if s == 'a' else xs[:-1]\n")
    assert wrong.message.startswith("expected [3, 3, 3, ")
    assert len(wrong.message) < 400


def test_a_reference_sees_the_arguments_as_they_were(tmp_path: Path, judge: Judge) -> None:
    test = "def ref_func(xs):\n    return sorted(xs)\n\ninputs = [[[2, 1]]]\n"
    test += "for i, inp in enumerate(inputs):\n    assertion(f(*inp), ref_func(*inp), 0)\n"
    row = {"task_id": 1, "prompt": "Sort.", "code": "def f(xs): return sorted(xs)", "test_list": ["assert f([]) == []"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"test": test}))
    (task,) = load_tasks("mbpp+", path=tmp_path / "rows.jsonl")
    assert graded(judge, task, task.canonical_program).passed
    assert not graded(judge, task, "def f(xs):\n    xs.clear()\n    return xs\n").passed


@pytest.mark.parametrize(
    ("output", "expected", "atol", "same"),
    [
        (1, 1, 0, True),
        (True, 1, 0, True),
        ((1, 2), [1, 2], 0, False),
        (0.1 + 0.2, 0.3, 0, True),  # 1e-6 where floats are expected
        (0.3 + 1e-5, 0.3, 0, False),
        ([0.1 + 0.2], [0.3], 0, True),
        ((0.1 + 0.2,), [0.3], 0, False),
        ([0.3, 1.0], [0.3], 0, False),
        ([], [0.3], 0, False),
        (10**9 + 1, 10**9, 0, False),
        (1e9 + 1, 1e9, 0, True),  # the relative tolerance of 1e-7
        (1333333833333500000, 1.3333338333335e18, 0, True),
        (0.3 + 1e-5, 0.3, 1e-4, True),
        ([[0.3 + 1e-5], 1], [[0.3], 1], 1e-4, True),
        ("a", "b", 1e-4, False),
        (None, 0.5, 0, False),
        ({"a": 0.1 + 0.2}, {"a": 0.3}, 1e-4, False),
        (10**400, 0.5, 0, False),
        (float("inf"), float("inf"), 0, True),
        (float("nan"), float("nan"), 0, False),
    ],
)
def test_the_tolerance_is_that_of_evalplus(output: Any, expected: Any, atol: float, same: bool) -> None:
    assert evalplus_same(output, expected, atol) is same


@pytest.mark.parametrize(
    ("oracle", "inputs", "output", "expected", "same"),
    [
        ("check_str", ["a"], object(), True, True),
        ("check_str", ["a"], None, False, True),
        ("check_str", ["a"], None, True, False),
        ("check_str", ["a"], False, True, False),
        ("similar_elements", [(1, 2), (2, 1)], [2, 1, 2], (1, 2), True),
        ("similar_elements", [(1, 2), (2, 1)], {1: 0, 2: 0}.keys(), (1, 2), True),
        ("similar_elements", [(1, 2), (2, 1)], None, (1, 2), False),
        ("surface_Area", [3, 4], 33, 33, True),
        ("surface_Area", [3, 4], 35, 33, True),  # 4 is the height
        ("surface_Area", [3, 4], 34, 33, False),
        ("digit_distance_nums", [12345, 9], 8, 8, True),
        ("digit_distance_nums", [12345, 9], 14, 8, True),  # 12345 and 00009
        ("digit_distance_nums", [12345, 9], 15, 8, False),
        ("digit_distance_nums", [-1, 9], 15, 8, False),
    ],
)
def test_oracles_accept_every_reading(oracle: str, inputs: Any, output: Any, expected: Any, same: bool) -> None:
    assert evalplus_same(output, expected, 0, inputs, oracle) is same
    assert oracle in EVALPLUS_ORACLES


def test_long_values_are_shown_in_part() -> None:
    assert evalplus_shown((1, "a")) == "(1, 'a')"
    assert len(evalplus_shown([["x" * 10**6] * 10**4] * 10**4)) <= 120
