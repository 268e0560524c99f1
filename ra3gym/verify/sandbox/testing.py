"""Serving the tests' side: one process runs the tests of a whole batch, each for a program of its own.

Tests are the task's, not the program's, and all they get of a program is decoded values: so a process may go on from
one program's tests to the next one's, in a fresh namespace. One that does not come to the end of its tests, for
whatever reason, is killed and replaced.
"""

from __future__ import annotations

import os
import random
import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import child, serving, tester
else:
    import child
    import serving
    import tester

_MAX_EXAMS = 256
_GO = b"g"


class _Process(NamedTuple):
    """A process that runs tests: its id, where its report comes from, and where it is told to go on."""

    pid: int
    report: int
    go: int


class TestServer(serving.Server):
    """Answers batches of tests."""

    def __init__(
        self, channel: socket.socket, starter: serving.Starter, shut_in: Callable[[dict[str, Any]], None]
    ) -> None:
        """`shut_in` takes the limits of a run for the process that calls it."""
        super().__init__(channel, "tester", starter)
        self._shut_in = shut_in
        self._exams: dict[str, tester.Exam] = {}

    def serve_batch(self, runs: list[dict[str, Any]], file: int, lines: list[int]) -> None:
        """See `serving.Server`."""
        exams = [self._exam(run, file) for run in runs]
        process = None
        for index, (run, line) in enumerate(zip(runs, lines, strict=True)):
            serving.wait_for_word(line)
            if process is None:
                process = self._fork(runs[index], exams[index:], lines[index:])
            os.close(line)  # the program must see the end when the tests hang up
            started = time.monotonic()
            os.write(process.go, _GO)
            self.report.open(process.report, serving.REPORT_BYTES)
            ended = self._read_tests(process, started + run["seconds"])
            if ended or index == len(runs) - 1:
                self._end(process)
                process = None
            answer = {"ended": ended or "exited", "seconds": time.monotonic() - started, "sizes": [self.report.size, 0]}
            serving.tell(self.channel, answer)
            self.report.pass_on(self.channel)

    def _exam(self, run: dict[str, Any], file: int) -> tester.Exam:
        """The tests of a run, compiled once for all programs."""
        exam = self._exams.pop(run["exam"], None) or tester.compiled(child.read_json(file, run["at"]))
        self._exams[run["exam"]] = exam
        if len(self._exams) > _MAX_EXAMS:
            del self._exams[next(iter(self._exams))]
        return exam

    def _fork(self, run: dict[str, Any], exams: list[tester.Exam], lines: list[int]) -> _Process:
        report, reported = os.pipe()
        going, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                going, *lines = child.keep_descriptors(reported, [going, *lines])
                _run_all(exams, lines, going, lambda: self._shut_in(run))
            finally:
                os._exit(1)
        os.close(reported)
        os.close(going)
        return _Process(pid, report, go)

    def _read_tests(self, process: _Process, deadline: float) -> str:
        """Read the report of one program's tests; why it is not whole, or `""`."""
        poll = select.poll()
        poll.register(self.channel, 0)  # says whether the judge has hung up
        poll.register(process.report, select.POLLIN)
        while not self.report.ends_with(child.DONE):
            left = deadline - time.monotonic()
            ready = poll.poll(max(0, left * 1000)) if left > 0 else []
            if not ready:
                return "timeout"
            if any(descriptor == self.channel.fileno() for descriptor, _ in ready):
                self._end(process)
                os._exit(0)
            if not self.report.read():
                return serving.ending(process.pid)
            if self.report.overflows:
                return "output_limit"
        return ""

    def _end(self, process: _Process) -> None:
        os.close(process.report)
        os.close(process.go)
        self._starter.end(process.pid)


def _run_all(exams: list[tester.Exam], lines: list[int], going: int, shut_in: Callable[[], None]) -> NoReturn:
    """Run each exam when told to go on; leave at the first that does not come to its end."""
    for index, (exam, line) in enumerate(zip(exams, lines, strict=True)):
        if not os.read(going, 1):
            break
        os.dup2(line, child.CALLS)
        os.close(line)
        child.set_up(shut_in if index == 0 else lambda: None)
        random.seed(0)
        try:
            finished = tester.run(exam)
        except BaseException as error:  # out of the tests' own set-up
            child.report({"error": child.described(error)})
            finished = False
        os.close(child.CALLS)
        if not finished:
            break
        os.write(child.REPORT, child.DONE)
    os._exit(0)
