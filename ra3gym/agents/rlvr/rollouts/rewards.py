"""Rewards of programs: a `Grader`, or any function of the task and the text."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from ra3gym.tasks import CodeTask
from ra3gym.verify import Graded


class Reward(Protocol):
    """Grades completions: `ra3gym.verify.Grader` by unit tests, in the background while sampling continues."""

    def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
        """Grade text i, sampled for task i; latents are part of the text, the end token is not.

        A program whose reward is `None`, NaN or infinite is left out of the update. A step in which this happens to
        more than `RLVRConfig.max_ungraded` of the programs ends the run, and so does an exception.
        """
        ...


class FunctionReward:
    """A reward of your own, computed at once.

    A program for which the function raises an exception, or returns no finite number, gets the reward NaN: it is left
    out of the update. The first exception is shown as a warning.

    Args:
        function: from a task and the completion's text, latents included, to a finite number.
        solved_at: completions with at least this reward count as solved in the pass rate.
    """

    def __init__(self, function: Callable[[CodeTask, str], float | None], solved_at: float = 1.0) -> None:
        self._function = function
        self._solved_at = solved_at
        self._warned = False

    def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
        """See `Reward.submit`."""
        graded = []
        for task, text in zip(tasks, texts, strict=True):
            reward = self._reward_of(task, text)
            graded.append(Graded(reward, reward >= self._solved_at))
        result: Future[list[Graded]] = Future()
        result.set_result(graded)
        return result

    def _reward_of(self, task: CodeTask, text: str) -> float:
        """Return the function's reward as a number; NaN where it gives none."""
        try:
            reward = self._function(task, text)
            return math.nan if reward is None else float(reward)
        except Exception as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the reward raised {type(error).__name__}: {error} for a program of task {task.task_id!r}; "
                    "programs without a reward are left out of the update, and later exceptions are only counted "
                    "(`ungraded` in the metrics)",
                    stacklevel=2,
                )
            return math.nan


def usable_reward(grade: Graded) -> float:
    """Return the reward of a grade; NaN where it is missing or infinite."""
    reward: Any = grade.reward  # of a user's own class, perhaps
    return math.nan if reward is None or not math.isfinite(reward) else float(reward)
