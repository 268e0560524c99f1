"""Rewards of programs: a `Grader`, or any function of the task and the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from ra3gym.tasks import CodeTask
from ra3gym.verify import Graded


class Reward(Protocol):
    """Grades completions: `ra3gym.verify.Grader` by unit tests, in the background while sampling continues."""

    def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
        """Grade text i, sampled for task i; latents are part of the text, the end token is not.

        A reward that is not finite ends the run with a `DataError`.
        """
        ...


class FunctionReward:
    """A reward of your own, computed at once.

    Args:
        function: from a task and the completion's text, latents included, to a finite number.
        solved_at: completions with at least this reward count as solved in the pass rate.
    """

    def __init__(self, function: Callable[[CodeTask, str], float], solved_at: float = 1.0) -> None:
        self._function = function
        self._solved_at = solved_at

    def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
        """See `Reward.submit`."""
        graded = []
        for task, text in zip(tasks, texts, strict=True):
            reward = float(self._function(task, text))
            graded.append(Graded(reward, reward >= self._solved_at))
        result: Future[list[Graded]] = Future()
        result.set_result(graded)
        return result
