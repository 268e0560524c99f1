"""The trainer's handle on one worker: a zygote for programs, and one for tests that call them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
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
from ra3gym.verify.runs import Outcome, Run

Isolation = Literal["namespaces", "process", "process-as-root"]
Role = Literal["solution", "tester"]

_SANDBOX = Path(__file__).with_name("sandbox")
# -I would ignore PYTHONHASHSEED as well; with this environment -s -P -S isolates as much, and verdicts repeat.
_FLAGS = ("-s", "-P", "-S", "-B", "-u")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
_START_SECONDS = 30.0
_GRACE_SECONDS = 10.0
_PROCESS = "process-as-root" if os.geteuid() == 0 else "process"
_WAY_OUT = (
    f"`ra3gym doctor` says more. RA3GYM_ISOLATION={_PROCESS} (or Judge(isolation={_PROCESS!r})) runs programs in plain "
    "processes under resource limits instead: slower and less safe"
)


class ZygoteDied(Exception):
    """A zygote ended, or fell silent. `outcomes` are those of the runs before."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.outcomes: list[Outcome] = []


class Zygote:
    """One process that programs are forked from, started at once; `wait_until_ready` before the first batch.

    Raises `JudgeError` when the interpreter cannot be started at all.
    """

    def __init__(self, role: Role, isolation: Isolation) -> None:
        script = "zygote.py" if isolation == "namespaces" else "spawner.py"
        command = [sys.executable, *_FLAGS, str(_SANDBOX / script), role]
        self._by_hand = " ".join(command)
        self._channel, theirs = socket.socketpair()
        self._unread = bytearray()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._channel.close()
            raise JudgeError(f"the judge cannot start {sys.executable!r}: {error}") from error
        finally:
            theirs.close()

    def wait_until_ready(self) -> None:
        """Wait until it is isolated and warm.

        Raises:
            SandboxUnavailable: this machine refuses a step of the isolation.
            ZygoteDied: it ended, or said nothing for half a minute.
        """
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(_START_SECONDS * 1000):
            raise ZygoteDied(f"it said nothing for {_START_SECONDS:.0f} s")
        ((answer, _, _),) = self._answers()
        if "failed" in answer:
            raise SandboxUnavailable(f"{answer['failed']}: {answer['error']}. {_WAY_OUT}")

    def fileno(self) -> int:
        """The channel's, for `select.poll`."""
        return self._channel.fileno()

    def send(self, runs: list[dict[str, Any]], descriptors: list[int]) -> None:
        """Pose a batch of runs; `ZygoteDied` when it has hung up."""
        data = json.dumps(runs).encode() + b"\n"
        try:
            sent = socket.send_fds(self._channel, [data], descriptors)
            self._channel.sendall(data[sent:])
        except OSError as error:
            raise ZygoteDied(f"it hung up: {error}") from None

    def outcomes(self) -> list[Outcome]:
        """Those that have arrived; blocks when nothing has. `ZygoteDied` when none will."""
        return [_outcome(*answer) for answer in self._answers()]

    def kill(self) -> None:
        """Kill it, and with it all that it forked."""
        self._process.kill()

    def close(self) -> None:
        """Kill it and wait for its end; safe to call twice."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def _answers(self) -> list[tuple[dict[str, Any], bytes, bytes]]:
        try:
            piece = self._channel.recv(1 << 20)
        except OSError:
            piece = b""
        if not piece:
            raise ZygoteDied(f"it ended with exit code {self._process.wait()}; by hand: {self._by_hand}")
        self._unread += piece
        found = []
        while (end := self._unread.find(b"\n")) >= 0:
            answer = json.loads(self._unread[:end])
            first, second = answer.pop("sizes", (0, 0))
            middle, last = end + 1 + first, end + 1 + first + second
            if len(self._unread) < last:
                break
            found.append((answer, bytes(self._unread[end + 1 : middle]), bytes(self._unread[middle:last])))
            del self._unread[:last]
        return found


class Worker:
    """Two zygotes, used by one thread at a time: the tests' one is started when there are tests to run."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation: Isolation = isolation
        self._zygotes: dict[Role, Zygote] = {}
        self._ready: set[Role] = set()
        self.start()

    def start(self, role: Role = "solution") -> None:
        """Start a zygote that is not there, without waiting for it."""
        if role not in self._zygotes:
            self._zygotes[role] = Zygote(role, self._isolation)

    def wait_until_ready(self) -> None:
        """See `Zygote.wait_until_ready`."""
        for role in self._zygotes.keys() - self._ready:
            self._zygotes[role].wait_until_ready()
            self._ready.add(role)

    def ask(self, runs: Sequence[Run]) -> list[Outcome]:
        """The outcome of each run.

        Raises:
            ZygoteDied: a process died or did not answer within the runs' own limits; both are gone afterwards.
            SandboxUnavailable, JudgeError: this machine cannot run programs.
        """
        try:
            self.start("solution")
            if any(run.tests is not None for run in runs):
                self.start("tester")
            self.wait_until_ready()
            return self._exchange(runs)
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        """Kill the zygotes from another thread: the one that uses them gets `ZygoteDied`."""
        for zygote in list(self._zygotes.values()):
            zygote.kill()

    def close(self) -> None:
        """Kill the zygotes; safe to call twice, and the next `ask` starts new ones."""
        self._ready.clear()
        while self._zygotes:
            self._zygotes.popitem()[1].close()

    def _exchange(self, runs: Sequence[Run]) -> list[Outcome]:
        """Pose all runs at once, and match what comes back: the zygotes keep the order, each its own."""
        with contextlib.ExitStack() as stack:
            tested = [run for run in runs if run.tests is not None]
            pairs = [socket.socketpair() for _ in tested]
            for end in itertools.chain(*pairs):
                stack.callback(end.close)
            programs, places = _file([run.program for run in runs])
            stack.callback(programs.close)
            # Nothing about the tests: their digest is one of the expected values, which a program could guess at.
            posed = [_posed(run, place) | {"exam": ""} for run, place in zip(runs, places, strict=True)]
            self._zygotes["solution"].send(posed, [programs.fileno(), *(ours.fileno() for ours, _ in pairs)])
            if tested:
                exams, places = _file([run.tests or b"" for run in tested])
                stack.callback(exams.close)
                posed = [_posed(run, place) for run, place in zip(tested, places, strict=True)]
                self._zygotes["tester"].send(posed, [exams.fileno(), *(theirs.fileno() for _, theirs in pairs)])
        return self._collect(runs)

    def _collect(self, runs: Sequence[Run]) -> list[Outcome]:
        solutions: list[Outcome] = []
        tests: list[Outcome] = []
        num_tests = sum(run.tests is not None for run in runs)
        deadline = time.monotonic() + sum(2 * run.seconds + 1.0 for run in runs) + _GRACE_SECONDS
        poll = select.poll()
        arrived = {self._zygotes["solution"].fileno(): (self._zygotes["solution"], solutions)}
        if num_tests:
            arrived[self._zygotes["tester"].fileno()] = (self._zygotes["tester"], tests)
        for descriptor in arrived:
            poll.register(descriptor, select.POLLIN)
        try:
            while len(solutions) < len(runs) or len(tests) < num_tests:
                ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not ready:
                    raise ZygoteDied("no answer within the limits of what it runs")
                for descriptor, _ in ready:
                    zygote, outcomes = arrived[descriptor]
                    outcomes += zygote.outcomes()
        except ZygoteDied as error:
            error.outcomes = _matched(runs, solutions, tests)
            raise
        return _matched(runs, solutions, tests)


def _outcome(answer: dict[str, Any], report: bytes, stdout: bytes) -> Outcome:
    """What a zygote's answer says; a report that does not begin as it should is the machine's fault."""
    ended = answer["ended"]
    *frames, _ = report.decode("utf-8", "replace").split("\n")  # what stands behind the last break is half a frame
    began = frames[:1] == ["ready"]
    finished = ended == "exited" and began and frames[-1] == "done"
    if not began and ended not in ("timeout", "skipped"):
        ended = "broken"
    return Outcome(
        frames=frames[began : len(frames) - finished],
        finished=finished,
        ended=ended,
        stdout=stdout.decode("utf-8", "replace"),
        seconds=answer["seconds"],
    )


def _posed(run: Run, place: tuple[int, int]) -> dict[str, Any]:
    """A run as its zygote reads it; `place` is where in the file that comes along."""
    return {
        "at": place,
        "job": run.job,
        "line": run.tests is not None,
        "exam": run.exam,
        "seconds": run.seconds,
        "memory_mb": run.memory_mb,
        "stdout_bytes": run.stdout_bytes,
    }


def _file(parts: Sequence[bytes]) -> tuple[BinaryIO, list[tuple[int, int]]]:
    """A file without a name that holds all parts, and the start and length of each."""
    file: BinaryIO
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("batch"), "wb")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.writelines(parts)
    file.flush()
    ends = itertools.accumulate(map(len, parts))
    return file, [(end - len(part), len(part)) for end, part in zip(ends, parts, strict=True)]


def _matched(runs: Sequence[Run], solutions: Sequence[Outcome], tests: Sequence[Outcome]) -> list[Outcome]:
    """Solutions with their tests, as far as both are there."""
    rest = iter(tests)
    matched: list[Outcome] = []
    for run, solution in zip(runs, solutions, strict=False):
        if run.tests is None:
            matched.append(solution)
        elif (its_tests := next(rest, None)) is not None:
            matched.append(replace(solution, tests=its_tests))
        else:
            break
    return matched
