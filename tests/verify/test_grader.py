"""The one path from text to verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ra3gym.errors import DataError, JudgeError, UnknownNameError
from ra3gym.tasks import CodeTask, FunctionTests, StdioTests
from ra3gym.tasks.answers import cut_completion, strip_latents
from ra3gym.verify import Graded, Grader, Judge, Status

TASK = CodeTask("test/double", "def f(x):\n", "f", FunctionTests(((1,), (2,)), (2, 4)))
RIGHT, HALF_RIGHT = "<|z1|>    return <|pause|>2 * x\n", "<|z3|>    return 2\n"


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1) as judge:
        yield judge


def test_a_text_is_graded_after_its_prompt_and_without_its_latents(judge: Judge) -> None:
    grader = Grader(judge)
    assert grader.program(TASK, RIGHT) == "def f(x):\n    return 2 * x\n"
    right, half = grader.submit([TASK, TASK], [RIGHT, HALF_RIGHT]).result()
    assert (right.reward, right.passed) == (1.0, True)
    assert (half.reward, half.passed) == (0.0, False)
    assert right.verdict is not None
    assert half.verdict is not None
    assert (right.verdict.status, half.verdict.tests) == (Status.PASSED, (True, False))


def test_the_score_rewards_each_test(judge: Judge) -> None:
    graded = Grader(judge, reward="score").submit([TASK, TASK], [RIGHT, HALF_RIGHT]).result()
    assert [(g.reward, g.passed) for g in graded] == [(1.0, True), (0.5, False)]


def test_the_reader_decides_what_of_a_text_is_the_completion(judge: Judge) -> None:
    grader = Grader(judge, completion_of=lambda task, text: cut_completion(task, strip_latents(text)))
    (graded,) = grader.submit([TASK], [f"{RIGHT}\nraise SystemExit\n"]).result()
    assert graded.passed
    (graded,) = Grader(judge).submit([TASK], [f"{RIGHT}\nraise SystemExit\n"]).result()
    assert not graded.passed


def test_whole_programs_are_graded_as_they_are(judge: Judge) -> None:
    programs = ["f = lambda x: 2 * x\n", "f = lambda x: x\n"]
    assert [g.passed for g in Grader(judge).submit_programs([TASK, TASK], programs).result()] == [True, False]


def test_errors_reach_the_caller() -> None:
    def broken(*_: Any) -> bool:
        raise ZeroDivisionError

    with Judge(workers=1) as judge:
        grader = Grader(judge)
        with pytest.raises(ValueError, match="shorter"):
            grader.submit([TASK, TASK], [RIGHT])
        empty = CodeTask("test/empty", "", "f", FunctionTests((), ()))
        with pytest.raises(DataError, match="'test/empty' has no tests"):
            grader.submit([empty], [""])
        with pytest.raises(UnknownNameError, match=r"unknown reward 'scores'.*Did you mean 'score'"):
            Grader(judge, reward="scores")  # type: ignore[arg-type]  # what a command line might pass
        checked = CodeTask("test/checked", "", "", StdioTests(("",), ("",), checker=broken))
        with pytest.raises(JudgeError, match="checker of task 'test/checked' raised"):
            grader.submit([checked], ["print(1)"]).result()
    with pytest.raises(JudgeError, match="closed"):
        grader.submit([TASK], [RIGHT])


def test_a_grade_without_a_judge_has_no_verdict() -> None:
    assert Graded(0.5, False).verdict is None
