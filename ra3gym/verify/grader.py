"""From sampled texts to verdicts and rewards: the one path that training, evaluation and the environments share."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, get_args

from ra3gym.errors import UnknownNameError
from ra3gym.tasks.answers import AnswerReader, without_latents
from ra3gym.tasks.task import CodeTask
from ra3gym.verify.judge import Judge
from ra3gym.verify.verdict import Verdict

RewardKind = Literal["passed", "score"]


@dataclass(frozen=True)
class Graded:
    """The grade of one text.

    Attributes:
        reward: a finite number.
        passed: whether the text counts as a solution.
        verdict: the judge's, `None` for a reward that runs no tests.
    """

    reward: float
    passed: bool
    verdict: Verdict | None = None


class Grader:
    """Grades texts by the unit tests of their tasks.

    Args:
        judge: runs the tests; the caller closes it.
        reward: "passed" gives 1 for a program that passes all its tests, else 0; "score" gives the fraction passed.
        completion_of: reads the completion from a sampled text; `answer_reader(tokenizer)` for base models.

    Raises:
        UnknownNameError: no such reward.
    """

    def __init__(
        self, judge: Judge, *, reward: RewardKind = "passed", completion_of: AnswerReader = without_latents
    ) -> None:
        if reward not in get_args(RewardKind):
            raise UnknownNameError("reward", reward, get_args(RewardKind))
        self.judge = judge
        self._reward = reward
        self._completion_of = completion_of

    def program(self, task: CodeTask, text: str) -> str:
        """Return the program that is graded for a sampled text: the task's prompt, then the completion."""
        return task.prompt + self._completion_of(task, text)

    def submit(self, tasks: Sequence[CodeTask], texts: Sequence[str]) -> Future[list[Graded]]:
        """Grade text i, latents included, as a sample for task i.

        Returns at once, so that sampling can continue. The future raises the errors of `Judge.grade`.
        """
        return self.submit_programs(tasks, [self.program(task, text) for task, text in zip(tasks, texts, strict=True)])

    def submit_programs(self, tasks: Sequence[CodeTask], programs: Sequence[str]) -> Future[list[Graded]]:
        """Grade whole programs; see `submit`."""
        graded: Future[list[Graded]] = Future()
        graded.set_running_or_notify_cancel()
        verdicts = self.judge.submit(list(zip(tasks, programs, strict=True)))
        verdicts.add_done_callback(lambda done: self._pass_on(done, graded))
        return graded

    def _pass_on(self, verdicts: Future[list[Verdict]], graded: Future[list[Graded]]) -> None:
        if (error := verdicts.exception()) is not None:
            graded.set_exception(error)
        else:
            graded.set_result([self._graded(verdict) for verdict in verdicts.result()])

    def _graded(self, verdict: Verdict) -> Graded:
        reward = float(verdict.passed) if self._reward == "passed" else verdict.score
        return Graded(reward, verdict.passed, verdict)
