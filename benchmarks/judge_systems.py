"""The systems that `judge.py` measures, our judge and each peer, and what their processes use."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judge_peers
import psutil
from judge_peers import PEERS
from judge_programs import Program

from ra3gym.tasks import CodeTask
from ra3gym.verify import Judge


def children() -> list[psutil.Process]:
    """Return all descendants of this process."""
    return list(psutil.Process().children(recursive=True))


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return user and system time of processes and of the children that they have waited for."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def total(figure: Callable[[psutil.Process], float], processes: Iterable[psutil.Process]) -> float | None:
    """Return the sum of a figure over processes; `None` if the kernel does not report it."""
    try:
        return sum(map(figure, processes))
    except (AttributeError, psutil.AccessDenied):
        return None


def memory_mb_per_worker(processes: Iterable[psutil.Process], workers: int) -> float | None:
    """Return the proportional set size of a judge's processes divided by its number of workers."""
    memory = total(lambda process: process.memory_full_info().pss, processes)
    return None if memory is None else memory / 2**20 / workers


@dataclass(frozen=True)
class Pass:
    """The result of grading all programs once; `latencies` (seconds) are measured with one worker only."""

    seconds: float
    cpu_seconds: float
    passed: list[bool]
    latencies: list[float] | None


class PeerSystem:
    """A peer in its process; `unavailable` is why it cannot run."""

    def __init__(self, name: str, programs: Sequence[Program], python: Path | None, seconds: float) -> None:
        """Start it with the interpreter `python` (the present one if `None`); a program may run for `seconds`."""
        self.name = name
        self.tests = PEERS[name].tests
        self._process = subprocess.Popen(
            [str(python or sys.executable), judge_peers.__file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        posed = {"programs": [program.for_peers() for program in programs], "seconds": seconds}
        self.about = self._ask(json.dumps(posed))
        self.unavailable: str | None = self.about.get("unavailable")

    def measure(self, workers: int) -> Pass:
        """Grade all programs once."""
        before = cpu_seconds(self._processes())
        answer = self._ask(str(workers))
        spent = cpu_seconds(self._processes()) - before
        return Pass(answer["seconds"], spent, answer["passed"], answer["latencies"] if workers == 1 else None)

    def close(self) -> None:
        """End its process."""
        self._process.communicate()

    def _processes(self) -> list[psutil.Process]:
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended, so there is no answer either
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        answered = self._process.stdout.readline()
        if not answered:
            raise RuntimeError(f"the process of {self.name!r} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(answered)
        return answer


class OwnSystem:
    """The judge, with one kind of tests."""

    name = "ra3gym"

    def __init__(self, tests: str, programs: Sequence[Program], judges: dict[int, Judge]) -> None:
        self.tests = tests
        self._pairs = [program.posed(tests) for program in programs]
        self._judges = judges

    def measure(self, workers: int) -> Pass:
        """Grade all programs once as a batch; with one worker grade each alone as well, for the latencies."""
        judge = self._judges[workers]
        before, own = cpu_seconds(children()), time.process_time()
        started = time.perf_counter()
        verdicts = judge.grade(self._pairs)
        seconds = time.perf_counter() - started
        spent = cpu_seconds(children()) - before + time.process_time() - own
        latencies = [_latency(judge, pair) for pair in self._pairs] if workers == 1 else None
        return Pass(seconds, spent, [verdict.passed for verdict in verdicts], latencies)


def _latency(judge: Judge, pair: tuple[CodeTask, str]) -> float:
    started = time.perf_counter()
    judge.grade([pair])
    return time.perf_counter() - started
