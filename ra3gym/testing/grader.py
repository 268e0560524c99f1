"""What a grader must satisfy: it tells right programs from wrong ones, in order, and the same way each time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ra3gym.tasks import CodeTask

if TYPE_CHECKING:
    from ra3gym.verify.grader import Graded


class GradesTexts(Protocol):
    """A `ra3gym.verify.grader.Grader`, or a reward of your own for RLVR."""

    def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
        """Grade text i as a sample for task i."""
        ...


def check_grader(grader: GradesTexts, tasks: Sequence[CodeTask], *, seconds: float = 300.0) -> None:
    """Check a grader with the reference solution of each task, and with a text that is not a program.

    Args:
        grader: the object to check.
        tasks: a few tasks with a `canonical_solution`.
        seconds: longest time to wait for each batch of grades.

    Raises:
        AssertionError: the message names the task and what is wrong.
    """
    for task in tasks:
        assert task.canonical_solution is not None, f"task {task.task_id!r} has no reference solution: leave it out"
    right = [task.canonical_solution or "" for task in tasks]
    wrong = ["    this is not a program ((\n"] * len(tasks)
    # One batch of both kinds, alternating, so that grades in another order are noticed.
    texts = [text for pair in zip(right, wrong, strict=True) for text in pair]
    repeated = [task for task in tasks for _ in range(2)]
    first = grader.submit(repeated, texts).result(seconds)
    assert len(first) == len(texts), f"submit() returned {len(first)} grades for {len(texts)} texts"
    for task, good, bad in zip(tasks, first[::2], first[1::2], strict=True):
        name = f"task {task.task_id!r}"
        for grade in (good, bad):
            assert np.isfinite(grade.reward), f"{name} has the reward {grade.reward!r}, not a finite number"
        assert good.passed, f"the reference solution of {name} does not pass: {good}"
        assert not bad.passed, f"a text that is not a program passes {name}: {bad}"
        assert good.reward > bad.reward, (
            f"the reference solution of {name} gets the reward {good.reward}, a text that is not a program {bad.reward}"
        )
    second = grader.submit(repeated, texts).result(seconds)
    for task, one, other in zip(repeated, first, second, strict=True):
        assert (one.reward, one.passed) == (other.reward, other.passed), (
            f"the same text for task {task.task_id!r} was graded {one.reward} and then {other.reward}"
        )
