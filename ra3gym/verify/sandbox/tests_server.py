"""Serving batches of tests: one process runs the tests of a whole batch, each for a program of its own.

Tests come from the task, and all they get of a program is decoded values. So one process may run the tests of one
program after the other, each in a fresh namespace. A process that does not reach the end of its tests, whatever the
reason, is killed and replaced.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from . import child, server, tests

_MAX_TESTS = 256
_GO = b"g"


class _Process(NamedTuple):
    """A process that runs tests.

    Attributes:
        pid: its process id.
        reports: the descriptor to read its reports from.
        go: the descriptor on which it awaits a byte before each program's tests.
    """

    pid: int
    reports: int
    go: int


class TestsServer(server.Server):
    """Answers batches of tests."""

    def __init__(
        self, channel: socket.socket, starter: server.Starter, take_limits: Callable[[dict[str, Any]], None]
    ) -> None:
        """`take_limits` takes the limits of a run for the process that calls it."""
        super().__init__(channel, "tests", starter)
        self._take_limits = take_limits
        self._compiled: dict[str, tests.Tests] = {}

    def serve_batch(self, runs: list[dict[str, Any]], file: int, connections: list[int]) -> None:
        """See `server.Server`."""
        compiled = [self._tests(run, file) for run in runs]
        process = None
        for index, (run, connection) in enumerate(zip(runs, connections, strict=True)):
            server.wait_until_loaded(connection)
            if process is None:
                process = self._fork(run, compiled[index:], connections[index:])
            os.close(connection)  # while this process held it, the program would not see the end of the tests
            started = time.monotonic()
            os.write(process.go, _GO)
            self.reports.open(process.reports, server.REPORTS_BYTES)
            watch = server.Watch(process.pid, run)
            ended = self.read(process.pid, [self.reports], watch, until_done=True)
            seconds, cpu_seconds = time.monotonic() - started, watch.cpu_seconds
            finished = ended == "exited" and self.reports.ends_with(child.DONE)
            if not finished or index == len(runs) - 1:
                self._end(process)
                process = None
            sizes = [self.reports.size, 0]
            server.send(self.channel, server.answer(ended, None, seconds, cpu_seconds, sizes))
            self.reports.pass_on(self.channel)

    def _tests(self, run: dict[str, Any], file: int) -> tests.Tests:
        """Return the tests of a run, compiled once for all programs."""
        digest = run["tests_digest"]
        compiled = self._compiled.pop(digest, None) or tests.compiled(child.read_json(file, run["at"]))
        self._compiled[digest] = compiled
        if len(self._compiled) > _MAX_TESTS:
            del self._compiled[next(iter(self._compiled))]
        return compiled

    def _fork(self, run: dict[str, Any], compiled: list[tests.Tests], connections: list[int]) -> _Process:
        reports, reports_end = os.pipe()
        go_end, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                go_end, *connections = child.keep_descriptors(reports_end, [go_end, *connections])
                _run_all(compiled, connections, go_end, lambda: self._take_limits(run))
            finally:
                os._exit(1)
        os.close(reports_end)
        os.close(go_end)
        return _Process(pid, reports, go)

    def _end(self, process: _Process) -> None:
        os.close(process.reports)
        os.close(process.go)
        self._starter.end(process.pid)


def _run_all(compiled: list[tests.Tests], connections: list[int], go: int, take_limits: Callable[[], None]) -> NoReturn:
    """Run the tests of each program after a byte on `go`; exit after the first that do not reach their end."""
    for index, (tests_of_program, connection) in enumerate(zip(compiled, connections, strict=True)):
        if not os.read(go, 1):
            break
        os.dup2(connection, child.CALLS)
        os.close(connection)
        child.set_up(take_limits if index == 0 else lambda: None)
        random.seed(0)
        try:
            finished = tests.run(tests_of_program)
        except BaseException as error:  # raised by the setup of the tests
            child.report({"error": child.described(error)})
            finished = False
        os.close(child.CALLS)
        if not finished:
            break
        os.write(child.REPORTS, child.DONE)
    os._exit(0)
