"""The judge on real processes: every outcome of a program, none of which disturbs the next program."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest

from ra3gym.errors import ConfigError, DataError, JudgeError, SandboxUnavailable, UnknownNameError
from ra3gym.tasks import AssertTests, CheckTests, CodeTask, FunctionTests, StdioTests
from ra3gym.verify import Isolation, Judge, Limits, Status, Verdict

LIMITS = Limits(seconds=1.0, memory_mb=256, output_kb=4)


ISOLATIONS: list[Isolation] = ["namespaces", "process-as-root" if os.geteuid() == 0 else "process"]


@pytest.fixture(scope="module", params=ISOLATIONS)
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    """Yield a judge of each isolation, without namespaces only if RA3GYM_ISOLATION asks for plain processes."""
    if request.param == "namespaces" and "process" in os.environ.get("RA3GYM_ISOLATION", ""):
        pytest.skip("RA3GYM_ISOLATION asks for plain processes")
    judge = Judge(workers=2, limits=LIMITS, isolation=request.param)
    with judge:
        yield judge


def function_task(*cases: tuple[Any, Any], tolerance: float = 0.0, entry_point: str = "f") -> CodeTask:
    tests = FunctionTests(tuple((case[0],) for case in cases), tuple(case[1] for case in cases), tolerance)
    return CodeTask("test/f", "def f(x):\n", entry_point, tests)


DOUBLE = function_task((1, 2), ("a", "aa"), ([1], [1, 1]))
CHECK = CodeTask("test/check", "", "f", CheckTests("def check(candidate):\n    assert candidate(2) == 4\n"))
ASSERTS = CodeTask("test/asserts", "", "f", AssertTests(("assert f(two) == 4", "assert f(0) == 0"), "two = 2"))
ECHO = CodeTask("test/stdio", "", "", StdioTests(("3\n1 2\n", "5\n"), ("3 1  2", "5\n")))


def graded(judge: Judge, task: CodeTask, source: str) -> Verdict:
    (verdict,) = judge.grade([(task, source)])
    assert len(verdict.tests) == len(task.tests)
    assert verdict.passed == (verdict.status is Status.PASSED) == (verdict.score == 1.0)
    assert bool(verdict.message) != verdict.passed
    assert verdict.isolation == judge.isolation
    return verdict


@pytest.mark.parametrize("task", [DOUBLE, CHECK, ASSERTS], ids=lambda task: task.task_id)
def test_a_right_function_passes(judge: Judge, task: CodeTask) -> None:
    verdict = graded(judge, task, "def f(x):\n    return x * 2\n")
    assert verdict.passed
    assert verdict.seconds > 0


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("def f(x):\n    return x\n", Status.WRONG_ANSWER, "expected 2, got 1"),
        ("def f(x):\n    return 1 / 0\n", Status.EXCEPTION, "ZeroDivisionError"),
        ("raise KeyError('k')\n", Status.EXCEPTION, "KeyError"),
        ("def g(x):\n    return x\n", Status.EXCEPTION, "no 'f'"),
        ("f = 3\n", Status.EXCEPTION, "no 'f'"),
        ("def f(x) return x", Status.SYNTAX_ERROR, "SyntaxError"),
        ("x = '\0'", Status.SYNTAX_ERROR, "null byte"),
        ("x = '\ud800'", Status.SYNTAX_ERROR, "surrogates"),
        ("(" * 10_000, Status.SYNTAX_ERROR, "too many nested"),
        ("def f(x):\n    while True: pass\n", Status.TIMEOUT, "out of time"),
        ("while True: pass\n", Status.TIMEOUT, "out of time"),
        ("def f(x):\n    return [0] * 10**9\n", Status.MEMORY, "MemoryError"),
        ("import ctypes\ndef f(x):\n    ctypes.string_at(0)\n", Status.CRASH, "signal 11"),
        ("import os\ndef f(x):\n    os._exit(0)\n", Status.EXITED_EARLY, "before the last test"),
        ("import sys\ndef f(x):\n    sys.exit(0)\n", Status.EXITED_EARLY, "sys.exit"),
        ("raise SystemExit\n", Status.EXITED_EARLY, "sys.exit"),
        ("def f(x):\n    print('a' * 5000, flush=True)\n    return x * 2\n", Status.OUTPUT_LIMIT, "too much"),
        ("def f(x):\n    return 'a' * 10**7\n", Status.OUTPUT_LIMIT, "too much"),
        ("def f(x):\n    return f(x)\n", Status.EXCEPTION, "RecursionError"),
        ("import numpy\n", Status.EXCEPTION, "ModuleNotFoundError"),
        ("import ra3gym\n", Status.EXCEPTION, "ModuleNotFoundError"),
    ],
)
def test_every_way_to_fail_has_its_status(judge: Judge, source: str, status: Status, message: str) -> None:
    verdict = graded(judge, DOUBLE, source)
    assert verdict.status is status
    assert message in verdict.message
    assert verdict.score == 0.0


@pytest.mark.parametrize("task", [CHECK, ASSERTS], ids=lambda task: task.task_id)
@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def f(x):\n    return 5\n", Status.WRONG_ANSWER),
        ("def f(x):\n    assert x is None\n", Status.EXCEPTION),
        ("import sys\ndef f(x):\n    sys.exit(0)\n", Status.EXITED_EARLY),
        ("import os\ndef f(x):\n    os._exit(0)\n", Status.EXITED_EARLY),
        ("import os\nos.write(3, b'{\"ok\": true}\\n' * 9)\nos._exit(0)\n", Status.EXITED_EARLY),
        ("def f(x):\n", Status.SYNTAX_ERROR),
        ("def f(x):\n    while True: pass\n", Status.TIMEOUT),
    ],
)
def test_tests_beside_the_program(judge: Judge, task: CodeTask, source: str, status: Status) -> None:
    assert graded(judge, task, source).status is status


def test_partial_credit_counts_what_came_before_the_end(judge: Judge) -> None:
    source = "def f(x):\n    if x == [1]:\n        while True: pass\n    return x * 2\n"
    verdict = graded(judge, DOUBLE, source)
    assert (verdict.status, verdict.tests) == (Status.TIMEOUT, (True, True, False))
    verdict = graded(judge, DOUBLE, "def f(x):\n    return x * 2 if x != 'a' else 0\n")
    assert (verdict.status, verdict.tests) == (Status.WRONG_ANSWER, (True, False, True))
    assert verdict.score == pytest.approx(2 / 3)
    verdict = graded(judge, ASSERTS, "def f(x):\n    return 0\n")
    assert (verdict.tests, verdict.message) == ((False, True), "test 0: assert f(two) == 4")


def test_types_are_strict_and_tolerance_is_the_tasks_choice(judge: Judge) -> None:
    source = "def f(x):\n    return x + 1e-9\n"
    assert not graded(judge, function_task((1, 1)), source).passed
    assert graded(judge, function_task((1, 1), tolerance=1e-6), source).passed
    assert not graded(judge, function_task((1, 1)), "def f(x):\n    return True\n").passed
    assert not graded(judge, function_task(([1], [1])), "def f(x):\n    return (1,)\n").passed
    equal_to_all = "class A:\n    def __eq__(self, other): return True\ndef f(x):\n    return A()\n"
    assert graded(judge, DOUBLE, equal_to_all).status is Status.WRONG_ANSWER


def test_expected_outputs_are_not_in_the_program(judge: Judge) -> None:
    secret = "an unlikely answer"
    source = f"""
import gc, sys
def f(x):
    seen = [repr(o) for o in gc.get_objects()] + [repr(sys._getframe(n).f_locals) for n in range(3)]
    wanted = "".join(reversed({secret[::-1]!r}))
    return wanted if any(wanted in text for text in seen) else None
"""
    (verdict,) = judge.grade([(function_task((1, secret)), source)])
    assert not verdict.passed


def test_a_method_is_an_entry_point_too(judge: Judge) -> None:
    task = function_task((2, 4), entry_point="Solution.double")
    assert graded(judge, task, "class Solution:\n    def double(self, x):\n        return 2 * x\n").passed
    assert graded(judge, task, "class Solution:\n    pass\n").status is Status.EXCEPTION
    assert graded(judge, task, "def double(x):\n    return 2 * x\n").status is Status.EXCEPTION


@pytest.mark.parametrize(
    "source",
    [
        "n = input()\nprint(n)\ntry:\n    print(input())\nexcept EOFError:\n    pass\n",
        "import sys\nsys.stdout.write(sys.stdin.read())\n",
        "import os\nos.write(1, os.read(0, os.fstat(0).st_size))\n",
        "import sys\nif __name__ == '__main__':\n    print(*open(0))\n    sys.exit(0)\n",
        "import sys\nprint(sys.stdin.buffer.read().decode())\nexit()\n",
    ],
)
def test_programs_read_stdin_in_every_usual_way(judge: Judge, source: str) -> None:
    verdict = graded(judge, ECHO, source)
    assert verdict.passed, verdict
    assert verdict.stdout.split() == ["3", "1", "2", "5"]


@pytest.mark.parametrize(
    ("source", "status", "tests"),
    [
        ("print(5)\n", Status.WRONG_ANSWER, (False, True)),
        ("print(1 / 0)\n", Status.EXCEPTION, (False, False)),
        ("import sys\nprint(*open(0))\nsys.exit(1)\n", Status.EXITED_EARLY, (False, False)),
        ("print(input()\n", Status.SYNTAX_ERROR, (False, False)),
        ("print(*open(0))\nwhile True: pass\n", Status.TIMEOUT, (False, False)),
    ],
)
def test_whole_programs_fail(judge: Judge, source: str, status: Status, tests: tuple[bool, ...]) -> None:
    verdict = graded(judge, ECHO, source)
    assert (verdict.status, verdict.tests) == (status, tests)


def test_prints_are_captured_and_kept_apart(judge: Judge) -> None:
    verdict = graded(judge, DOUBLE, "print('{\"value\": 1}')\ndef f(x):\n    return x * 2\n")
    assert verdict.passed
    assert verdict.stdout == '{"value": 1}\n'


def test_the_environment_is_not_passed_on(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RA3GYM_TEST_SECRET", "s3cret")
    task = function_task((0, []))
    source = "import os\ndef f(x):\n    return [k for k in os.environ if 'SECRET' in k or k in ('HOME', 'PATH')]\n"
    with Judge(workers=1, limits=LIMITS) as fresh:
        assert fresh.grade([(task, source)])[0].passed


def test_verdicts_repeat(judge: Judge) -> None:
    source = "import random\ndef f(x):\n    return [random.random(), list({'a', 'b', 'c', 'd', 'e'})]\n"
    first, second = (graded(judge, DOUBLE, source + "#" * n).message for n in range(2))
    assert first == second


def test_order_is_kept_and_bad_programs_disturb_no_one(judge: Judge) -> None:
    good, wrong = "def f(x):\n    return x * 2\n", "def f(x):\n    return x\n"
    kinds = [good, wrong, "import os\nos._exit(0)\n", "def f(x) return", "def f(x):\n    return [0] * 10**9\n"]
    sources = [kinds[index % 5] + f"# {index}\n" for index in range(100)]
    verdicts = judge.grade([(DOUBLE, source) for source in sources])
    expected = [Status.PASSED, Status.WRONG_ANSWER, Status.EXITED_EARLY, Status.SYNTAX_ERROR, Status.MEMORY]
    assert [verdict.status for verdict in verdicts] == expected * 20


def test_equal_pairs_run_once_and_are_remembered() -> None:
    source = "def f(x):\n    return x * 2\n"
    again = function_task((1, 2), ("a", "aa"), ([1], [1, 1]))
    with Judge(workers=1, limits=LIMITS) as judge:
        first = judge.grade([(DOUBLE, source), (again, source), (DOUBLE, source + " ")])
        assert first[0] is first[1]
        assert first[0] is not first[2]
        assert judge.grade([(DOUBLE, source)])[0] is first[0]
        other = function_task((1, 3), ("a", "aa"), ([1], [1, 1]))
        assert not judge.grade([(other, source)])[0].passed
        slow = "while True: pass\n"
        assert judge.grade([(DOUBLE, slow)])[0] is not judge.grade([(DOUBLE, slow)])[0]
    with Judge(workers=1, limits=LIMITS, cache_size=0) as judge:
        assert judge.grade([(DOUBLE, source)])[0] is not judge.grade([(DOUBLE, source)])[0]


def test_submit_overlaps_and_gives_the_same(judge: Judge) -> None:
    batches = [[(DOUBLE, f"def f(x):\n    return x * {n}\n# {m}\n") for m in range(5)] for n in range(4)]
    futures = [judge.submit(batch) for batch in batches]
    assert [[verdict.passed for verdict in future.result()] for future in futures] == [[n == 2] * 5 for n in range(4)]
    assert judge.submit([]).result() == []


def test_an_error_in_the_with_block_cancels_what_has_not_started() -> None:
    slow: list[Future[list[Verdict]]] = []

    def interrupted() -> None:
        with Judge(workers=1, limits=LIMITS) as judge:
            slow.extend(judge.submit([(DOUBLE, f"while True: pass\n# {n}\n")]) for n in range(60))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(JudgeError, match="closed before"):
        slow[-1].result()


def test_a_killed_worker_is_replaced() -> None:
    source = "def f(x):\n    return x * 2\n"
    with Judge(workers=1, limits=LIMITS) as judge:
        before = psutil.Process().children()
        assert judge.grade([(CHECK, source)])[0].passed
        for child in psutil.Process().children():
            if child not in before:
                child.kill()
                child.wait()
        assert judge.grade([(CHECK, source + "# again")])[0].passed


def test_a_broken_machine_is_an_error_not_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("/nonexistent/python", "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(JudgeError, match=executable):
            Judge(workers=1)


def test_nothing_is_left_behind() -> None:
    children, files = psutil.Process().children(recursive=True), psutil.Process().num_fds()
    with Judge(workers=2, limits=LIMITS) as judge:
        judge.grade([(DOUBLE, f"def f(x):\n    return x * {n}\n") for n in range(40)])
        steady = psutil.Process().num_fds()
        judge.grade([(DOUBLE, f"def f(x):\n    return {n} * x\n") for n in range(40)])
        assert psutil.Process().num_fds() == steady
    judge.close()
    assert psutil.Process().children(recursive=True) == children
    assert psutil.Process().num_fds() <= files


def test_another_process_may_not_use_it(judge: Judge) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            judge.submit([])
        except JudgeError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_bad_input_is_refused_with_a_reason(judge: Judge) -> None:
    with pytest.raises(DataError, match="no tests"):
        judge.grade([(function_task(), "")])
    with pytest.raises(DataError, match="must be a str, got int"):
        judge.grade([(DOUBLE, 3)])
    with pytest.raises(DataError, match="not of builtin types"):
        judge.grade([(function_task((1, object())), "")])
    with pytest.raises(DataError, match="2 inputs but 1 outputs"):
        judge.grade([(CodeTask("t", "", "f", FunctionTests(((1,), (2,)), (1,))), "")])
    with pytest.raises(ValueError, match="workers"):
        Judge(workers=0)
    for field in ("seconds", "memory_mb", "output_kb"):
        with pytest.raises(ConfigError, match=f"Limits.{field} must be positive"):
            Limits(**{field: 0})
    closed = Judge(workers=1)
    closed.close()
    with pytest.raises(JudgeError, match="closed"):
        closed.grade([(DOUBLE, "")])


HARM = [
    "open('/etc/passwd').read()",
    "open(path)",
    "open(path, 'w')",
    "os.open(path, os.O_RDWR)",
    "os.remove(path)",
    "os.rename(path, path + '2')",
    "__import__('shutil').rmtree(folder)",
    "open('/tmp/left', 'w')",
    "__import__('tempfile').mkdtemp()",
    "__import__('subprocess').run(['rm', path])",
    "os.kill(os.getppid(), 9)",
    "os.fork()",
    "__import__('socket').socket()",
]


@pytest.mark.parametrize("harm", HARM)
def test_what_does_harm_is_refused(judge: Judge, harm: str, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("here")
    source = f"import os\nfolder, path = {str(tmp_path)!r}, {str(file)!r}\ndef f(x):\n    {harm}\n    return x * 2\n"
    verdict = graded(judge, DOUBLE, source)
    assert verdict.status is Status.EXCEPTION
    assert file.read_text() == "here"
    assert list(tmp_path.iterdir()) == [file]


def test_programs_find_a_normal_python(judge: Judge) -> None:
    source = """
import ctypes, decimal, hashlib, json, random, sqlite3, ssl, sys, threading, time, unicodedata, zoneinfo
def f(x):
    done = []
    thread = threading.Thread(target=done.append, args=(x,))
    thread.start()
    thread.join()
    time.sleep(0.001)
    assert sys.argv == ["solution.py"]
    return done[0] * 2
"""
    assert graded(judge, DOUBLE, source).passed


CALLED = CodeTask(
    "test/called",
    'def helper(x):\n    return x\n\n\ndef f(x):\n    """What the tests call, with `helper` for them to use."""\n',
    "f",
    AssertTests(
        (
            "assert f(Pair(1, 2)) == 3",
            "pair = Pair(1, 2); pair.left = 5; assert f(pair) == 7 and pair.left == 5",
            "data = [3, 1]; f(data); assert data == [1, 3]",
            "assert list(f('abc')) == ['a', 'b', 'c']",
            "assert f(int) is float",
            "try:\n    f(None)\nexcept ValueError as error:\n    assert str(error) == 'none'\nelse:\n    assert False",
            "assert helper(f(0)) == 1",
        )
    ),
)
ANSWERS = """
class Pair:
    def __init__(self, left, right):
        self.left, self.right = left, right
def f(x):
    if isinstance(x, Pair):
        return x.left + x.right
    if isinstance(x, list):
        x.sort()
    if isinstance(x, str):
        return (letter for letter in x)
    if x is int:
        return float
    if x is None:
        raise ValueError('none')
    return 1
"""


def test_tests_in_another_process_get_the_same_results_as_in_one(judge: Judge) -> None:
    assert graded(judge, CALLED, ANSWERS).passed


def test_helpers_of_the_prompt_come_from_the_prompt(judge: Judge) -> None:
    cheat = ANSWERS.replace("return 1", "return 0") + "def helper(x):\n    return 1\n"
    assert graded(judge, CALLED, cheat).tests == (True,) * 6 + (False,)


def test_objects_of_the_program_equal_nothing(judge: Judge) -> None:
    source = "class Any:\n    def __eq__(self, other): return True\ndef f(x):\n    return Any()\n"
    for task in (CHECK, ASSERTS):
        assert graded(judge, task, source).status is Status.WRONG_ANSWER


def test_stopping_early_leaves_the_later_tests_out() -> None:
    assert_task = CodeTask("test/stop", "", "f", AssertTests(("assert f(1)", "assert f(2)", "assert f(3)")))
    with Judge(workers=1, limits=LIMITS, stop_early=True) as early:
        source = "def f(x):\n    print(x)\n    return x != 2\n"
        (verdict,) = early.grade([(assert_task, source)])
        assert (verdict.tests, verdict.stdout) == ((True, False, False), "1\n2\n")
        (verdict,) = early.grade([(ECHO, "print(input() + '!')")])
        assert (verdict.tests, verdict.stdout) == ((False, False), "3!\n")


def test_tests_that_are_no_python_are_refused(judge: Judge) -> None:
    with pytest.raises(DataError, match=r"test/bad.*not Python"):
        judge.grade([(CodeTask("test/bad", "", "f", AssertTests(("assert f(",))), "")])


def test_isolations_are_named() -> None:
    with pytest.raises(UnknownNameError, match="known: namespaces, process, process-as-root"):
        Judge(isolation="chroot")
    if os.geteuid() == 0:
        with pytest.raises(SandboxUnavailable, match="process-as-root"):
            Judge(isolation="process")


def test_the_isolation_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RA3GYM_ISOLATION", ISOLATIONS[1])
    with Judge(workers=1) as judge:
        assert judge.isolation == ISOLATIONS[1]


LOW_LIMIT = """
import resource
from ra3gym.errors import JudgeError
from ra3gym.tasks import CodeTask, FunctionTests
from ra3gym.verify import Judge, Limits
task = CodeTask("t", "", "f", FunctionTests(((1,),), (1,)))
resource.setrlimit(resource.{limit}, ({value}, {value}))
try:
    with Judge(workers=1, limits=Limits(seconds=5, memory_mb=1024), isolation="{isolation}") as judge:
        print(judge.grade([(task, "def f(x): return x")]))
except JudgeError as error:
    print("JudgeError", error)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("limit", "value", "name"),
    [("RLIMIT_AS", 900 << 20, "address space"), ("RLIMIT_CPU", 3, "CPU time"), ("RLIMIT_NOFILE", 200, "open files")],
)
def test_hard_limits_below_ours_are_the_machines_fault(judge: Judge, limit: str, value: int, name: str) -> None:
    script = LOW_LIMIT.format(limit=limit, value=value, isolation=judge.isolation)
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout
    assert f"hard limit on {name} is {value}" in said
    assert said.startswith(("JudgeError", "SandboxUnavailable"))


def test_closing_with_cancel_ends_running_programs() -> None:
    endless = [(DOUBLE, f"while True: pass\n# {n}\n") for n in range(64)]
    judge = Judge(workers=2, limits=Limits(seconds=600))
    running = judge.submit(endless)
    judge.close(cancel=True)
    with pytest.raises(JudgeError, match="closed before"):
        running.result()


def test_a_checker_decides_where_several_answers_are_right(judge: Judge) -> None:
    def any_divisor(stdin: str, expected: str, stdout: str) -> bool:
        return int(stdin) % int(stdout) == 0

    task = CodeTask("test/divisor", "", "", StdioTests(("12", "35"), ("2", "5"), any_divisor))
    assert graded(judge, task, "n = int(input())\nprint(n // 5 if n == 35 else 3)\n").passed
    assert graded(judge, task, "input()\nprint(5)\n").tests == (False, True)
    with pytest.raises(JudgeError, match=r"checker of task 'test/divisor' raised ValueError"):
        judge.grade([(task, "print('many')\n")])


def test_a_dropped_judge_ends_its_workers_without_a_warning() -> None:
    me = psutil.Process()
    children, descriptors, others = me.children(recursive=True), me.num_fds(), threading.enumerate()
    judge = Judge(workers=2, limits=LIMITS, isolation=ISOLATIONS[0])
    assert all(
        verdict.passed for verdict in judge.grade([(CHECK, "f = lambda x: 2 * x"), (DOUBLE, "f = lambda x: 2 * x")])
    )
    threads = [thread for thread in threading.enumerate() if thread not in others]
    dropped = weakref.ref(judge)
    with warnings.catch_warnings(record=True, action="always") as caught:
        del judge
        gc.collect()
    assert dropped() is None
    assert [str(warning.message) for warning in caught] == []
    assert threads
    for thread in threads:
        thread.join()
    assert me.children(recursive=True) == children
    assert me.num_fds() <= descriptors


def test_a_judge_that_a_script_never_closes_leaves_no_warning() -> None:
    script = """
from ra3gym.tasks import CodeTask, FunctionTests
from ra3gym.verify import Judge
judge = Judge(workers=1)
print(judge.grade([(CodeTask("t", "", "f", FunctionTests(((1,),), (1,))), "")])[0].status)
"""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("exception", "")


def check_task(*lines: str) -> CodeTask:
    return CodeTask("test/check", "", "f", CheckTests("\n    ".join(["def check(candidate):", *lines]) + "\n"))


@pytest.mark.parametrize(
    ("before", "call", "change", "after"),
    [
        ("xs = [3, 1]", "xs=xs", "xs.sort()", "xs == [1, 3]"),
        ("xs = {1: [2]}", "**{'xs': xs}", "xs[1].append(3)", "xs == {1: [2, 3]}"),
        ("xs = ([1], 2)", "xs", "xs[0].append(3)", "xs == ([1, 3], 2)"),
        ("import collections; xs = collections.deque([1], 5)", "xs", "xs.appendleft(0)", "list(xs) == [0, 1]"),
        ("import collections; xs = collections.Counter('a')", "xs", "xs['a'] -= 2", "xs['a'] == -1 and len(xs) == 1"),
        (
            "import collections; xs = collections.OrderedDict(a=1, b=2)",
            "xs",
            "xs.move_to_end('a')",
            "[*xs] == ['b', 'a']",
        ),
        ("xs = [3, 1]", "xs=tuple(xs)", "xs[0]", "xs == [3, 1]"),
    ],
)
def test_arguments_changed_in_place_come_back(judge: Judge, before: str, call: str, change: str, after: str) -> None:
    task = check_task(before, f"candidate({call})", f"assert {after}, xs")
    verdict = graded(judge, task, f"def f(xs):\n    {change}\n")
    assert verdict.passed, verdict.message


SIZED = """
class Bag:
    def __init__(self, items):
        self.items = items
    def __len__(self):
        return len(self.items)
    def __iter__(self):
        return iter(self.items)
class Row(Bag):
    __iter__ = None
    def __getitem__(self, index):
        return self.items[index]
class Endless:
    def __iter__(self):
        while True:
            yield 1
class Equal:
    def __eq__(self, other):
        return True
    def __contains__(self, other):
        return True
    __hash__ = None
"""


@pytest.mark.parametrize(
    ("answer", "condition", "holds"),
    [
        ("{3: 4}.keys()", "out == {3} and set(out) == {3} and len(out) == 1", True),
        ("{3: 4}.values()", "list(out) == [4]", True),
        ("{3: 4}.items()", "out == {(3, 4)}", True),
        ("Bag([1, 2])", "sorted(out) == [1, 2] and len(out) == 2 and 2 in out", True),
        ("Bag([1, 2])", "out == [1, 2]", False),
        ("Bag([Equal()])", "5 in out", False),
        ("Row([1, 2])", "out[1] == 2 and len(out) == 2", True),
        ("Row([1, 2])", "out[2] == 2", False),
        ("Bag(x for x in [1])", "len(out) == 1", False),
        ("Endless()", "next(iter(out)) == 1", True),
        ("Endless()", "hasattr(out, '__len__')", False),
        ("Equal()", "out == 5", False),
        ("Equal()", "5 in out", False),
        ("__import__('datetime').datetime(2026, 1, 2)", "out.year == 2026 and out == type(out)(2026, 1, 2)", True),
        ("__import__('uuid').UUID(int=7)", "out == type(out)(int=7)", True),
        ("__import__('pathlib').Path('a') / 'b'", "out == type(out)('a/b')", True),
    ],
)
def test_what_tests_can_do_with_an_answer(judge: Judge, answer: str, condition: str, holds: bool) -> None:
    task = check_task("out = candidate(1)", f"assert {condition}")
    assert graded(judge, task, f"{SIZED}\n\ndef f(x):\n    return {answer}\n").passed is holds
