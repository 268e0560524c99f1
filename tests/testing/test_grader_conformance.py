"""The grader's conformance suite: ours passes, and each fault is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from ra3gym import Judge
from ra3gym.tasks import CodeTask
from ra3gym.tasks.idioms import IdiomsDomain
from ra3gym.testing import check_grader
from ra3gym.verify.grader import Graded, Grader

TASKS = IdiomsDomain(length=3, difficulty="easy", num_compositions=20, num_held_out=4).tasks("eval")[:3]


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1) as judge:
        yield judge


@pytest.mark.parametrize("reward", ["passed", "score"])
def test_our_grader_conforms(judge: Judge, reward: Any) -> None:
    check_grader(Grader(judge, reward=reward), TASKS)


class Changed:
    """A grader that gives right grades, changed; call says how often it was called before."""

    def __init__(self, change: Callable[[list[Graded], int], list[Graded]]) -> None:
        self.change, self.calls = change, 0

    def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
        right = [text == task.canonical_solution for task, text in zip(tasks, texts, strict=True)]
        done: Future[list[Graded]] = Future()
        done.set_result(self.change([Graded(float(one), one) for one in right], self.calls))
        self.calls += 1
        return done


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda grades, call: grades[1:], "returned 5 grades for 6 texts"),
        (lambda grades, call: grades[::-1], "the reference solution of task .* does not pass"),
        (lambda grades, call: [replace(one, passed=True) for one in grades], "a text that is not a program passes"),
        (lambda grades, call: [replace(one, reward=float("nan")) for one in grades], "reward nan, not a finite number"),
        (lambda grades, call: [replace(one, reward=1.0) for one in grades], r"gets the reward 1\.0, .* 1\.0"),
        (lambda grades, call: [replace(one, reward=one.reward + call) for one in grades], r"graded 1\.0 and then 2\.0"),
    ],
)
def test_a_fault_is_named(change: Callable[[list[Graded], int], list[Graded]], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_grader(Changed(change), TASKS)


def test_the_unchanged_one_passes() -> None:
    check_grader(Changed(lambda grades, call: grades), TASKS)


def test_a_task_without_a_reference_solution_is_named() -> None:
    with pytest.raises(AssertionError, match="has no reference solution"):
        check_grader(Changed(lambda grades, call: grades), [replace(TASKS[0], canonical_solution=None)])
