"""When processes of the judge die: every verdict is still right, and no process stays behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ra3gym.errors import JudgeError
from ra3gym.tasks import AssertTests, CheckTests, CodeTask, FunctionTests, StdioTests
from ra3gym.verify import Judge, Limits, Status

LIMITS = Limits(seconds=2.0, memory_mb=256, output_kb=4)
TASKS = {
    "function": CodeTask("test/f", "", "f", FunctionTests(((1,), ("a",), ([1],)), (2, "aa", [1, 1]))),
    "check": CodeTask("test/check", "", "f", CheckTests("def check(candidate):\n    assert candidate(2) == 4\n")),
    "asserts": CodeTask("test/asserts", "", "f", AssertTests(("assert f(two) == 4", "assert f(0) == 0"), "two = 2")),
    "stdio": CodeTask("test/stdio", "", "", StdioTests(("1\n", "5\n"), ("2\n", "10\n"))),
}
PROGRAMS = {
    Status.PASSED: "def f(x):\n    return x * 2\n",
    Status.WRONG_ANSWER: "def f(x):\n    return 3 if x else 1\n",
    Status.EXCEPTION: "def f(x):\n    raise KeyError(x)\n",
    Status.SYNTAX_ERROR: "def f(x) return x\n",
    Status.EXITED_EARLY: "import os\n\n\ndef f(x):\n    os._exit(1)\n",
    Status.CRASH: "import ctypes\n\n\ndef f(x):\n    ctypes.string_at(0)\n",
    Status.MEMORY: "def f(x):\n    return [0] * 10**9\n",
}
ENDLESS = "def f(x):\n    while True:\n        pass\n"
SCRIPT = "\n\nif __name__ == '__main__':\n    print(f(int(input())))\n"


def program(kind: str, status: Status, number: int) -> str:
    """Return a program that gets this status, with a different text for each number."""
    return f"{PROGRAMS[status]}{SCRIPT if kind == 'stdio' else ''}# {number}\n"


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        os.sched_yield()
        threading.Event().wait(0.005)


def zygotes(of: psutil.Process) -> Iterator[psutil.Process]:
    """Yield the judge's processes: for each zygote the one outside its namespaces and the one that is pid 1 inside."""
    for outer in of.children():
        try:
            if any(part == "zygote" for part in outer.cmdline()):
                yield outer
                yield from outer.children()
        except psutil.NoSuchProcess:
            continue


@pytest.mark.slow
def test_every_verdict_is_right_while_zygotes_are_killed() -> None:
    """2,000 programs of all kinds; whenever 40 are done, a process of the judge's is killed, whichever it is."""
    rng = random.Random(0)
    me = psutil.Process()
    before, files = me.children(recursive=True), me.num_fds()
    cases = [(rng.choice(list(TASKS)), rng.choice(list(PROGRAMS))) for _ in range(2000)]
    pairs = [(TASKS[kind], program(kind, status, number)) for number, (kind, status) in enumerate(cases)]
    killed: list[str] = []
    with Judge(workers=2, limits=LIMITS, cache_size=0) as judge:
        futures = [judge.submit(pairs[start : start + 40]) for start in range(0, len(pairs), 40)]
        verdicts = []
        for future in futures:
            verdicts += future.result()
            threading.Event().wait(rng.uniform(0.0, 0.1))  # so that the kill comes at any point of a batch
            victims = list(zygotes(me))
            if victims:
                victim = rng.choice(victims)
                try:
                    killed.append(f"{victim.cmdline()[-1]} {'outer' if victim.ppid() == me.pid else 'inner'}")
                    victim.kill()
                except (psutil.NoSuchProcess, IndexError):  # it died together with another process
                    continue
    assert [verdict.status for verdict in verdicts] == [status for _, status in cases]
    assert len(set(killed)) == 4, "of both kinds of zygotes, both processes"
    assert me.children(recursive=True) == before
    assert me.num_fds() <= files


@pytest.mark.parametrize("role", ["program", "tests"])
@pytest.mark.parametrize("inner", [False, True], ids=["outer", "inner"])
def test_a_zygote_killed_in_the_middle_of_a_program(role: str, inner: bool) -> None:
    """A new zygote runs the program again and reaches the right verdict."""
    me = psutil.Process()
    mine = set(me.children())
    slow = "import time\n\n\ndef f(x):\n    time.sleep(0.4)\n    return x * 2\n"
    with Judge(workers=1, limits=LIMITS, cache_size=0) as judge:
        assert judge.grade([(TASKS["asserts"], program("asserts", Status.PASSED, 0))])[0].passed
        (outer,) = [child for child in me.children() if child not in mine and role in child.cmdline()[-1]]
        (pid_1,) = outer.children()
        future = judge.submit([(TASKS["asserts"], slow), (TASKS["check"], slow), (TASKS["function"], ENDLESS)])
        until(lambda: bool(pid_1.children()), 30, "a program in the zygote")
        (pid_1 if inner else outer).kill()
        assert [verdict.status for verdict in future.result()] == [Status.PASSED, Status.PASSED, Status.TIMEOUT]
        assert outer not in me.children()
    assert set(me.children()) == mine


_TRAINER = """
import sys

from ra3gym.tasks import CheckTests, CodeTask
from ra3gym.verify import Judge, Limits

task = CodeTask("t", "", "f", CheckTests("def check(candidate):\\n    assert candidate(1) == 1\\n"))
judge = Judge(workers=2, limits=Limits(seconds=60))
judge.submit([(task, sys.argv[1] + "# %d" % number) for number in range(4)])
sys.stdin.read()
"""


def test_a_killed_trainer_leaves_nothing_running() -> None:
    """Programs end before their time limit, because nobody waits for their verdicts."""
    root = str(Path(__file__).resolve().parents[2])
    trainer = subprocess.Popen(
        [sys.executable, "-c", _TRAINER, ENDLESS],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
        cwd="/",
    )
    left: list[psutil.Process] = []
    try:
        process = psutil.Process(trainer.pid)

        def programs_run() -> bool:
            left[:] = process.children(recursive=True)
            # For each worker: two zygotes of two processes, and a program.
            return len(left) >= 10

        until(programs_run, 60, "two running programs")
        trainer.send_signal(signal.SIGKILL)
        trainer.communicate()
        until(lambda: not any(map(_lives, left)), 20, "the end of all that the trainer started")
    finally:
        trainer.kill()
        for process in left:
            if process.is_running():
                process.kill()


def _lives(process: psutil.Process) -> bool:
    """Return whether a process runs and is not a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_closed_while_busy() -> None:
    """Running programs are ended, waiting ones cancelled; there are no verdicts, and no process stays behind."""
    me = psutil.Process()
    before, files = me.children(recursive=True), me.num_fds()
    judge = Judge(workers=2, limits=LIMITS, cache_size=0)
    endless = [judge.submit([(TASKS["function"], f"{ENDLESS}# {number}\n")]) for number in range(20)]
    busy = threading.Thread(target=judge.close, kwargs={"cancel": True})
    until(lambda: len(me.children(recursive=True)) >= len(before) + 6, 30, "two running programs")
    busy.start()
    busy.join()
    for future in endless:
        with pytest.raises(JudgeError, match="closed before"):
            future.result()
    assert me.children(recursive=True) == before
    assert me.num_fds() <= files


def test_nothing_grows() -> None:
    """Descriptors, processes and the zygotes' memory are the same after 600 gradings as after 200."""
    me = psutil.Process()

    def state() -> tuple[int, list[psutil.Process], int]:
        own = list(zygotes(me))
        return me.num_fds(), me.children(recursive=True), sum(process.memory_info().rss for process in own)

    with Judge(workers=1, limits=LIMITS, cache_size=0) as judge:
        states = []
        for part in range(3):
            cases = [(kind, status) for _ in range(9) for kind in TASKS for status in list(PROGRAMS)[:6]][:200]
            numbers = range(200 * part, 200 * (part + 1))
            pairs = [(TASKS[kind], program(kind, status, n)) for n, (kind, status) in zip(numbers, cases, strict=True)]
            verdicts = judge.grade(pairs)
            assert [verdict.status for verdict in verdicts] == [status for _, status in cases]
            states.append(state())
    first, _, last = states
    assert last[0] == first[0]
    assert last[1] == first[1]
    assert last[2] <= first[2] + (1 << 20)
