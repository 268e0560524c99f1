"""The trainer's side of one worker: a server process for programs, and one for the tests that call them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ra3gym.errors import JudgeError, SandboxUnavailable
from ra3gym.tasks.interpreter import ISOLATED, fresh_environment
from ra3gym.verify.run import Outcome, Run

Isolation = Literal["namespaces", "process", "process-as-root"]
Role = Literal["program", "tests"]

_START = Path(__file__).with_name("sandbox") / "start.py"
_START_SECONDS = 30.0
_GRACE_SECONDS = 10.0
_PROCESS = "process-as-root" if os.geteuid() == 0 else "process"
_WAY_OUT = (
    f"`ra3gym doctor` says more. RA3GYM_ISOLATION={_PROCESS} (or Judge(isolation={_PROCESS!r})) runs programs in plain "
    "processes under resource limits instead: slower and less safe"
)


class ServerDied(Exception):
    """A server process ended, or stopped answering. `outcomes` are those of the runs before."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.outcomes: list[Outcome] = []


class ServerProcess:
    """One process of `sandbox.server`: a zygote, or a spawner where there are no namespaces.

    It starts at once. Call `wait_until_ready` before the first batch. Raises `JudgeError` when the interpreter cannot
    be started.
    """

    def __init__(self, role: Role, isolation: Isolation) -> None:
        kind = "zygote" if isolation == "namespaces" else "spawner"
        command = [sys.executable, *ISOLATED, "-u", str(_START), kind, role]
        self._command = shlex.join(command)
        self._channel, its_channel = socket.socketpair()
        self._unread = bytearray()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=its_channel.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=fresh_environment(),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._channel.close()
            raise JudgeError(f"the judge cannot start {sys.executable!r}: {error}") from error
        finally:
            its_channel.close()

    def wait_until_ready(self) -> None:
        """Wait until the process is isolated and warmed up.

        Raises:
            SandboxUnavailable: this machine refuses a step of the isolation.
            ServerDied: it ended, or was silent for half a minute.
        """
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(_START_SECONDS * 1000):
            raise ServerDied(f"it did not answer within {_START_SECONDS:.0f} s")
        ((answer, _, _),) = self._answers()
        if "failed" in answer:
            raise SandboxUnavailable(f"{answer['failed']}: {answer['error']}. {_WAY_OUT}")

    def fileno(self) -> int:
        """Return the descriptor of the channel, for `select.poll`."""
        return self._channel.fileno()

    def send(self, runs: list[dict[str, Any]], descriptors: list[int]) -> None:
        """Send a batch of runs; `ServerDied` when the process closed the channel."""
        data = json.dumps(runs).encode() + b"\n"
        try:
            sent = socket.send_fds(self._channel, [data], descriptors)
            self._channel.sendall(data[sent:])
        except OSError as error:
            raise ServerDied(f"it closed the channel: {error}") from None

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes that have arrived, after waiting for data; `ServerDied` when none can arrive."""
        return [_outcome(*answer) for answer in self._answers()]

    def kill(self) -> None:
        """Kill the process, and with it all that it forked."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process and wait for its end; safe to call twice."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _answers(self) -> list[tuple[dict[str, Any], bytes, bytes]]:
        """Receive data and return the answers that it completes, each with its reports and output."""
        try:
            piece = self._channel.recv(1 << 20)
        except OSError:
            piece = b""
        if not piece:
            raise ServerDied(f"it ended with exit code {self._process.wait()}; to start it by hand: {self._command}")
        self._unread += piece
        answers = []
        while (line_end := self._unread.find(b"\n")) >= 0:
            answer = json.loads(self._unread[:line_end])
            reports_size, stdout_size = answer.pop("sizes", (0, 0))
            reports_end = line_end + 1 + reports_size
            stdout_end = reports_end + stdout_size
            if len(self._unread) < stdout_end:
                break
            reports, stdout = self._unread[line_end + 1 : reports_end], self._unread[reports_end:stdout_end]
            answers.append((answer, bytes(reports), bytes(stdout)))
            del self._unread[:stdout_end]
        return answers


class Worker:
    """Two server processes, used by one thread at a time. The one for tests starts with the first tests to run."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation: Isolation = isolation
        self._servers: dict[Role, ServerProcess] = {}
        self._ready: set[Role] = set()
        self._start("program")

    def wait_until_ready(self) -> None:
        """Wait for the processes that were started; see `ServerProcess.wait_until_ready`."""
        for role in self._servers.keys() - self._ready:
            self._servers[role].wait_until_ready()
            self._ready.add(role)

    def execute(self, runs: Sequence[Run]) -> list[Outcome]:
        """Make the runs and return their outcomes, in order.

        Raises:
            ServerDied: a process died or did not answer within the runs' limits; both are gone afterwards.
            SandboxUnavailable, JudgeError: this machine cannot run programs.
        """
        try:
            self._start("program")
            if any(run.tests is not None for run in runs):
                self._start("tests")
            self.wait_until_ready()
            self._send(runs)
            return self._collect(runs)
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        """Kill the processes from another thread: the thread that uses them gets `ServerDied`."""
        for server in list(self._servers.values()):
            server.kill()

    def close(self) -> None:
        """Kill the processes; safe to call twice. The next `execute` starts new ones."""
        self._ready.clear()
        while self._servers:
            self._servers.popitem()[1].close()

    def _start(self, role: Role) -> None:
        """Start the process of a role unless there is one, without waiting until it is ready."""
        if role not in self._servers:
            self._servers[role] = ServerProcess(role, self._isolation)

    def _send(self, runs: Sequence[Run]) -> None:
        """Send all runs at once. Each server answers in their order."""
        with contextlib.ExitStack() as stack:
            tested = [run for run in runs if run.tests is not None]
            connections = [socket.socketpair() for _ in tested]
            for end in itertools.chain(*connections):
                stack.callback(end.close)
            programs, positions = _file([run.program for run in runs])
            stack.callback(programs.close)
            # Without the digest of the tests: it covers the expected values, so a program could test guesses by it.
            requests = [_request(run, at) | {"tests_digest": ""} for run, at in zip(runs, positions, strict=True)]
            descriptors = [programs.fileno(), *(program_end.fileno() for program_end, _ in connections)]
            self._servers["program"].send(requests, descriptors)
            if tested:
                tests, positions = _file([run.tests or b"" for run in tested])
                stack.callback(tests.close)
                requests = [_request(run, at) for run, at in zip(tested, positions, strict=True)]
                descriptors = [tests.fileno(), *(tests_end.fileno() for _, tests_end in connections)]
                self._servers["tests"].send(requests, descriptors)

    def _collect(self, runs: Sequence[Run]) -> list[Outcome]:
        """Wait for the outcomes of both servers, and pair those of programs with those of their tests."""
        num_tested = sum(run.tests is not None for run in runs)
        expected: dict[Role, int] = {"program": len(runs), "tests": num_tested}
        outcomes: dict[Role, list[Outcome]] = {"program": [], "tests": []}
        roles: dict[int, Role] = {self._servers[role].fileno(): role for role in expected if expected[role]}
        deadline = time.monotonic() + sum(2 * run.budgets * run.limits.wall + 1.0 for run in runs) + _GRACE_SECONDS
        poll = select.poll()
        for descriptor in roles:
            poll.register(descriptor, select.POLLIN)
        try:
            while any(len(outcomes[role]) < expected[role] for role in expected):
                ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not ready:
                    raise ServerDied("it did not answer within the limits of its runs")
                for descriptor, _ in ready:
                    role = roles[descriptor]
                    outcomes[role] += self._servers[role].outcomes()
        except ServerDied as error:
            error.outcomes = _paired(runs, outcomes["program"], outcomes["tests"])
            raise
        return _paired(runs, outcomes["program"], outcomes["tests"])


def _outcome(answer: dict[str, Any], reports: bytes, stdout: bytes) -> Outcome:
    """Return the outcome of a server's answer; without the first line of reports the machine is broken."""
    ended = answer["ended"]
    lines = reports.decode("utf-8", "replace").split("\n")[:-1]  # after the last line break: half a report, or nothing
    started = lines[:1] == ["ready"]
    finished = started and ended == "exited" and lines[-1] == "done"
    if started:
        lines = lines[1:]
    elif ended not in ("cpu_limit", "wall_limit", "skipped"):
        ended = "broken"
    if finished:
        lines = lines[:-1]
    return Outcome(
        reports=lines,
        finished=finished,
        ended=ended,
        stdout=stdout.decode("utf-8", "replace"),
        seconds=answer["seconds"],
        cpu_seconds=answer["cpu_seconds"],
        exit_code=0 if finished else answer["exit_code"],
    )


def _request(run: Run, at: tuple[int, int]) -> dict[str, Any]:
    """Return a run as its server reads it; `at` is the start and length of what it runs in the batch's file."""
    return {
        "at": at,
        "submission": run.submission,
        "connected": run.tests is not None,
        "tests_digest": run.tests_digest,
        "seconds": run.limits.seconds,
        "wall_seconds": run.limits.wall,
        "budgets": run.budgets,
        "memory_mb": run.limits.memory_mb,
        "stdout_bytes": run.stdout_bytes,
    }


def _file(parts: Sequence[bytes]) -> tuple[BinaryIO, list[tuple[int, int]]]:
    """Return an unnamed file that holds all parts, and the start and length of each."""
    file: BinaryIO
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("batch"), "wb")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.writelines(parts)
    file.flush()
    ends = itertools.accumulate(map(len, parts))
    return file, [(end - len(part), len(part)) for end, part in zip(ends, parts, strict=True)]


def _paired(runs: Sequence[Run], programs: Sequence[Outcome], tests: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of programs with those of their tests, up to the first run that lacks one."""
    rest = iter(tests)
    paired: list[Outcome] = []
    for run, program in zip(runs, programs, strict=False):
        if run.tests is None:
            paired.append(program)
        elif (its_tests := next(rest, None)) is not None:
            paired.append(replace(program, tests=its_tests))
        else:
            break
    return paired
