"""Limits on time count the CPU time of a program, so that other work on the machine changes no verdict."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ra3gym.errors import ConfigError
from ra3gym.tasks import AssertTests, CheckTests, CodeTask, FunctionTests, StdioTests, Tests
from ra3gym.verify import Isolation, Judge, Limits, Status

BURN = """
import time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""
DOUBLE: dict[str, Tests] = {
    "function": FunctionTests(((1,), (2,), (3,)), (2, 4, 6)),
    "check": CheckTests("def check(candidate):\n    assert candidate(1) == 2\n"),
    "asserts": AssertTests(("assert f(1) == 2", "assert f(2) == 4", "assert f(3) == 6")),
    "stdio": StdioTests(("1\n", "2\n", "3\n"), ("2\n", "4\n", "6\n")),
}
TASKS = {kind: CodeTask(f"test/{kind}", "", "" if kind == "stdio" else "f", tests) for kind, tests in DOUBLE.items()}
PRINTS = "\nif __name__ == '__main__':\n    print(f(int(input())))\n"


@pytest.fixture(scope="module", params=["namespaces", "process-as-root" if os.geteuid() == 0 else "process"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    if request.param == "namespaces" and "process" in os.environ.get("RA3GYM_ISOLATION", ""):
        pytest.skip("RA3GYM_ISOLATION asks for plain processes")
    isolation: Isolation = request.param
    return isolation


@pytest.fixture(scope="module")
def judge(isolation: Isolation) -> Iterator[Judge]:
    """Yield a judge whose wall clock ends no program that computes, however slow the machine is."""
    limits = Limits(seconds=1.0, memory_mb=512, wall_seconds=600.0)
    with Judge(workers=1, limits=limits, isolation=isolation) as judge:
        yield judge


@pytest.fixture
def busy() -> Iterator[None]:
    """Run eight endless loops beside the test, at this process's own priority."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def program(kind: str, body: str) -> str:
    """Return a program that defines `f`, and reads stdin for tests that give one."""
    return f"{BURN}def f(x):\n    {body}\n    return 2 * x\n{PRINTS if kind == 'stdio' else ''}"


def test_other_work_on_the_machine_changes_no_verdict(busy: None) -> None:
    """A second of CPU time fits into four, however many programs compete."""
    with Judge(workers=2, limits=Limits(seconds=4.0, wall_seconds=600.0)) as judge:
        pairs = [(TASKS[kind], program(kind, "x == 1 and burn(1.0)")) for kind in ("function", "check")]
        verdicts = judge.grade(pairs)
    assert [verdict.status for verdict in verdicts] == [Status.PASSED] * len(pairs)
    if sys.platform == "linux":
        assert all(0.9 < verdict.cpu_seconds < 4.0 for verdict in verdicts)


@pytest.mark.parametrize("kind", TASKS)
def test_computing_ends_at_the_limit_on_cpu_time(judge: Judge, kind: str) -> None:
    (verdict,) = judge.grade([(TASKS[kind], program(kind, "burn(60.0)"))])
    assert (verdict.status, verdict.limit) == (Status.TIMEOUT, "cpu_limit")
    assert "the limit is 1 s of CPU time" in verdict.message


def test_threads_use_the_same_cpu_time(judge: Judge) -> None:
    """Threads that compute without the interpreter's lock count together, and so does one beside a waiting one."""
    source = """
import hashlib, threading
def f(x):
    threads = [threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"a", b"b", 10**9)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 2 * x
"""
    (verdict,) = judge.grade([(TASKS["function"], source)])
    assert (verdict.status, verdict.limit) == (Status.TIMEOUT, "cpu_limit")


@pytest.mark.parametrize("deaf", ["", "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"])
def test_the_tests_of_a_program_have_a_limit_too(judge: Judge, deaf: str) -> None:
    """What a test computes with an answer does not end the program's time, but its own."""
    task = CodeTask("test/slow", "", "f", AssertTests((f"{deaf}assert sum(range(f(1))) == 0",)))
    (verdict,) = judge.grade([(task, "def f(x):\n    return 10**12\n")])
    assert (verdict.status, verdict.limit) == (Status.TIMEOUT, "cpu_limit")


@pytest.mark.parametrize("kind", TASKS)
def test_waiting_ends_at_the_limit_on_wall_clock_time(isolation: Isolation, kind: str) -> None:
    with Judge(workers=1, limits=Limits(seconds=30.0, wall_seconds=1.5), isolation=isolation) as judge:
        (verdict,) = judge.grade([(TASKS[kind], program(kind, "time.sleep(60)"))])
    assert (verdict.status, verdict.limit) == (Status.TIMEOUT, "wall_limit")
    assert "the limit is 1.5 s of wall-clock time" in verdict.message


def test_the_wall_clock_allows_far_more_than_the_cpu() -> None:
    assert Limits().wall == 40.0
    assert Limits(seconds=0.5).wall == 30.0
    assert Limits(wall_seconds=5.0).wall == 5.0
    with pytest.raises(ConfigError, match="wall_seconds must be positive, got 0"):
        Limits(wall_seconds=0.0)


@pytest.mark.parametrize("kind", TASKS)
def test_a_tasks_own_seconds_are_for_each_test(judge: Judge, kind: str) -> None:
    """The judge's second is not enough for three tests of .6 s, the task's second for each of them is."""
    source = program(kind, "burn(0.6)")
    passes_anyway = kind in ("check", "stdio")  # one test, or a run for each
    assert judge.grade([(TASKS[kind], source)])[0].passed == passes_anyway
    own = replace(TASKS[kind], seconds=1.0)
    assert judge.grade([(own, source)])[0].passed
    (verdict,) = judge.grade([(replace(own, seconds=0.3), source)])
    assert (verdict.status, verdict.limit) == (Status.TIMEOUT, "cpu_limit")


def test_the_seconds_of_one_test_are_not_for_the_next(judge: Judge) -> None:
    task = replace(TASKS["function"], seconds=0.5)
    (verdict,) = judge.grade([(task, program("function", "x == 3 and burn(0.8)"))])
    assert (verdict.status, verdict.tests) == (Status.TIMEOUT, (True, True, False))
    assert "the limit is 0.5 s of CPU time for each test" in verdict.message


def test_forged_reports_add_no_time(judge: Judge) -> None:
    """A program may use its tests' seconds as it likes, but not more of them."""
    task = replace(TASKS["function"], seconds=0.3)
    source = program("function", "[(os.write(3, b'{}\\n'), burn(0.1)) for _ in range(10000)]")
    (verdict,) = judge.grade([(task, "import os\n" + source)])
    assert not verdict.passed
    assert verdict.cpu_seconds < 3.0


def test_a_tasks_own_memory(judge: Judge) -> None:
    source = "def f(x):\n    return len(bytearray(300 << 20)) and 2 * x\n"
    assert judge.grade([(TASKS["function"], source)])[0].passed
    for kind in ("function", "check"):
        (verdict,) = judge.grade([(replace(TASKS[kind], memory_mb=200), source)])
        assert verdict.status in (Status.MEMORY, Status.EXCEPTION)
        assert "MemoryError" in verdict.message
