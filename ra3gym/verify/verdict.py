"""The judge's answer on a program (`Verdict`), and how it follows from the outcomes of the runs (`reach_verdict`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ra3gym.errors import JudgeError
from ra3gym.tasks.task import AssertTests, CheckTests, FunctionTests, StdioTests
from ra3gym.verify.compare import same_text, same_value, shown
from ra3gym.verify.exam import Exam
from ra3gym.verify.run import Outcome
from ra3gym.verify.sandbox.encoding import DecodeError, parse

_MESSAGE_CHARS = 1000


class Status(StrEnum):
    """`PASSED`, or how the first failed test of a program failed."""

    PASSED = "passed"
    WRONG_ANSWER = "wrong_answer"
    EXCEPTION = "exception"
    SYNTAX_ERROR = "syntax_error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASH = "crash"
    EXITED_EARLY = "exited_early"
    OUTPUT_LIMIT = "output_limit"


@dataclass(frozen=True)
class Verdict:
    """The judge's answer on one program.

    Attributes:
        status: passed, or how the first failed test failed.
        tests: for each test whether it passed.
        message: about the first failed test; empty when all passed.
        seconds: wall-clock time of the runs.
        cpu_seconds: CPU time of the program in them.
        stdout: what the program printed, up to the limit.
        isolation: how the program was isolated; see `Judge`.
        limit: which limit struck in a run that was out of time: "cpu_limit", "wall_limit", else empty.
    """

    status: Status
    tests: tuple[bool, ...]
    message: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stdout: str = ""
    isolation: str = "namespaces"
    limit: str = ""

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status is Status.PASSED

    @property
    def score(self) -> float:
        """The fraction of tests passed, in [0, 1]."""
        return sum(self.tests) / len(self.tests)


_Result = tuple[Status, str]
"""How one test went, and a message when it failed."""
_Report = dict[str, Any]


def reach_verdict(exam: Exam, outcomes: Sequence[Outcome], isolation: str = "namespaces") -> Verdict:
    """Return the verdict on a program from the outcomes of its runs, one for each stdin/stdout test, else one.

    Missing outcomes of stdin/stdout tests mean that the judge stopped at the first failed test.
    """
    num_tests = len(exam.task.tests)
    if isinstance(exam.task.tests, StdioTests):
        results = [_stdio_result(outcome, exam, index) for index, outcome in enumerate(outcomes)]
        missing = (Status.WRONG_ANSWER, "not run, an earlier test failed")
        finished = True
    else:
        (outcome,) = outcomes
        tests = outcome.tests or outcome
        reports = [_parsed_report(text) for text in tests.reports[:num_tests]]
        finished = tests.finished
        missing = _ending(outcome, exam)
        if outcome.tests is not None:
            missing = _tests_ending(outcome, outcome.tests, exam)
            reports = [report for report in reports if not {"gone", "flood"} & report.keys()]
        results = [_report_result(report, exam, index) for index, report in enumerate(reports)]
        if missing[0] is Status.OUTPUT_LIMIT:  # how many tests were reported before the limit was noticed varies
            results = []
    results += [missing] * (num_tests - len(results))
    if not finished and all(status is Status.PASSED for status, _ in results):
        results[-1] = missing  # every test reported, but the program did not reach its end
    failed = [index for index, (status, _) in enumerate(results) if status is not Status.PASSED]
    status, message = results[failed[0]] if failed else (Status.PASSED, "")
    if failed and num_tests > 1 and status is not Status.SYNTAX_ERROR:
        message = f"test {failed[0]}: {message}"
    return Verdict(
        status=status,
        tests=tuple(result is Status.PASSED for result, _ in results),
        message=message[:_MESSAGE_CHARS].encode("utf-8", "backslashreplace").decode(),
        seconds=sum(outcome.seconds for outcome in outcomes),
        cpu_seconds=sum(outcome.cpu_seconds for outcome in outcomes),
        stdout="".join(outcome.stdout for outcome in outcomes)[: exam.stdout_bytes],
        isolation=isolation,
        limit=_limit(outcomes) if status is Status.TIMEOUT else "",
    )


def _limit(outcomes: Sequence[Outcome]) -> str:
    """Return which limit on time struck first: the program's in a run, else that of its tests."""
    ends = [part.ended for outcome in outcomes for part in (outcome, outcome.tests) if part is not None]
    return next((end for end in ends if end in ("cpu_limit", "wall_limit")), "")


def _stdio_result(outcome: Outcome, exam: Exam, index: int) -> _Result:
    tests = exam.task.tests
    assert isinstance(tests, StdioTests)
    if outcome.ended == "skipped":
        return Status.TIMEOUT, "not run, an earlier test ran out of time"
    if not outcome.finished and (outcome.exit_code != 0 or outcome.reports):
        return _ending(outcome, exam)
    expected, printed = tests.outputs[index], outcome.stdout
    if tests.checker is None:
        correct = same_text(printed, expected, tests.equality)
    else:
        try:
            correct = tests.checker(tests.inputs[index], expected, printed)
        except Exception as error:
            raise JudgeError(f"the checker of task {exam.task.task_id!r} raised {error!r} on test {index}") from error
    if correct:
        return Status.PASSED, ""
    return Status.WRONG_ANSWER, f"expected {expected[:100]!r}, got {printed[:100]!r}"


def _report_result(report: _Report, exam: Exam, index: int) -> _Result:
    """Return the result of the test that a report is about."""
    tests = exam.task.tests
    if "value" in report and isinstance(tests, FunctionTests):
        return _value_result(report["value"], exam, index)
    if "ok" in report and isinstance(tests, AssertTests | CheckTests):
        return Status.PASSED, ""
    if "wrong" in report:
        line = tests.asserts[index] if isinstance(tests, AssertTests) else report.get("line", "")
        return Status.WRONG_ANSWER, str(report["wrong"] or line) or "an assertion failed"
    return _failure(report)


def _failure(report: _Report) -> _Result:
    """Return the result for a report that something went wrong."""
    if "missing" in report:
        return Status.EXCEPTION, f"the program defines no {report['missing']!r}"
    if "syntax" in report:
        return Status.SYNTAX_ERROR, str(report["syntax"])
    if "memory" in report:
        return Status.MEMORY, "MemoryError"
    if "flood" in report:
        return Status.OUTPUT_LIMIT, "returned too much"
    if "gone" in report:
        return Status.EXITED_EARLY, str(report["gone"])
    if "exit" in report:
        return Status.EXITED_EARLY, "the program called sys.exit before the last test"
    return Status.EXCEPTION, str(report.get("error", "unreadable report"))


def _value_result(value: Any, exam: Exam, index: int) -> _Result:
    tests = exam.task.tests
    assert isinstance(tests, FunctionTests)
    expected = exam.expected[index]
    try:
        got = parse(value) if isinstance(value, str) else None
        if same_value(got, expected, tests.equality, tests.float_tolerance):
            return Status.PASSED, ""
        answer = shown(got)
    except DecodeError as error:
        return Status.WRONG_ANSWER, str(error)
    except RecursionError:
        return Status.WRONG_ANSWER, "nested too deeply"
    arguments = ", ".join(f"{argument!r:.120}" for argument in tests.inputs[index])
    return Status.WRONG_ANSWER, f"expected {shown(expected)}, got {answer} for ({arguments})"


def _tests_ending(program: Outcome, tests: Outcome, exam: Exam) -> _Result:
    """Return why tests in a process of their own stopped before the last one: the program ended, or they did."""
    if "gone" in _last_report(tests) and not program.finished:
        return _ending(program, exam)
    return _ending(tests, exam)


def _ending(outcome: Outcome, exam: Exam) -> _Result:
    """Return why a process ended before its last test."""
    limits, each = exam.limits, " for each test" if exam.budgets > 1 else ""
    if outcome.reports and outcome.ended == "exited":
        last = _last_report(outcome)
        if not {"value", "ok"} & last.keys():
            return _failure(last)
    match outcome.ended:
        case "cpu_limit":
            return Status.TIMEOUT, f"out of time: the limit is {limits.seconds:g} s of CPU time{each}"
        case "wall_limit":
            return (
                Status.TIMEOUT,
                f"out of time: the limit is {limits.wall:g} s of wall-clock time{each}; it waits for something, or the "
                "machine is overloaded",
            )
        case "memory":
            return Status.MEMORY, "killed by the kernel, out of memory"
        case "output_limit":
            return Status.OUTPUT_LIMIT, "printed or returned too much"
        case "exited" | "":
            return Status.EXITED_EARLY, "the process ended before the last test"
        case signal:
            return Status.CRASH, f"the process died of {signal}"


def _last_report(outcome: Outcome) -> _Report:
    return _parsed_report(outcome.reports[-1]) if outcome.reports else {}


def _parsed_report(text: str) -> _Report:
    """Return a report as a dict; an empty one if it is not a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
