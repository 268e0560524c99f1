"""Rewards of programs: the judge's verdicts, or any function of the task and the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from ra3gym.tasks import CodeTask
from ra3gym.tasks.answers import AnswerReader, without_latents
from ra3gym.verify import Judge, Verdict


@dataclass(frozen=True)
class Graded:
    """What a completion earned, and whether it counts as solved."""

    reward: float
    passed: bool


class Reward(Protocol):
    """Grades completions, in the background where it can: sampling goes on meanwhile."""

    def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
        """Grade text i, sampled for task i (latents included, the end of text removed).

        A reward that is not finite ends the run with a `DataError`.
        """
        ...


class JudgeReward:
    """Unit tests decide.

    Args:
        judge: stays the caller's.
        kind: "passed" gives 1 to a program that passes all tests and 0 to others; "score" the fraction passed.
        completion_of: what is graded of a text (`answer_reader` for base models).
    """

    def __init__(
        self,
        judge: Judge,
        kind: Literal["passed", "score"] = "passed",
        completion_of: AnswerReader = without_latents,
    ) -> None:
        self._judge = judge
        self._kind = kind
        self._completion_of = completion_of

    def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
        """See `Reward.submit`."""
        pairs = [(task, task.prompt + self._completion_of(task, text)) for task, text in zip(tasks, texts, strict=True)]
        result: Future[list[Graded]] = Future()
        self._judge.submit(pairs).add_done_callback(lambda verdicts: self._finish(verdicts, result))
        return result

    def _finish(self, verdicts: Future[list[Verdict]], result: Future[list[Graded]]) -> None:
        if (error := verdicts.exception()) is not None:
            result.set_exception(error)
            return
        result.set_result(
            [
                Graded(float(verdict.passed) if self._kind == "passed" else verdict.score, verdict.passed)
                for verdict in verdicts.result()
            ]
        )


class FunctionReward:
    """A reward of your own, worked out here and now.

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
