"""Attacks, and the tasks on which they are tried.

The answers of the tasks follow from a text that only the right program contains. A program that passes without that
text took the answers from the judge. Programs that try to do harm contain the text, and give right answers after they
did harm. So any attack that passes has broken the judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from ra3gym.tasks import AssertTests, CheckTests, CodeTask, FunctionTests, StdioTests
from ra3gym.verify import Status

RIGHT = """\
import hashlib


def right(x):
    return "answer-" + hashlib.sha256(f"kept from the program {x}".encode()).hexdigest()[:16]
"""
"""The right program, except for the name of its function."""

AS_SCRIPT = """

if __name__ == "__main__":
    print(f(int(input())))
"""
"""Appended to a program that defines `f`, to make it read stdin."""

FAILED = frozenset({Status.WRONG_ANSWER, Status.EXCEPTION})
LEFT = frozenset({Status.EXITED_EARLY})
OUT_OF_TIME = frozenset({Status.TIMEOUT})
NOT_PASSED = frozenset(Status) - {Status.PASSED}
"""For programs that may fail in any way."""


def answer(x: int) -> str:
    """Return what `right` returns."""
    return "answer-" + hashlib.sha256(f"kept from the program {x}".encode()).hexdigest()[:16]


def check(*statements: str, prompt: str = "") -> CodeTask:
    """Return a task with tests in HumanEval's form."""
    body = "".join(f"    {line}\n" for statement in statements for line in statement.splitlines())
    return CodeTask("attack/check", prompt, "f", CheckTests(f"def check(candidate):\n{body}"))


def asserts(*statements: str, setup: str = "") -> CodeTask:
    """Return a task with tests in MBPP's form."""
    return CodeTask("attack/asserts", "", "f", AssertTests(statements, setup))


def function(*outputs: object, tolerance: float = 0.0) -> CodeTask:
    """Return a task that calls `f` with 1, 2, ... and expects `outputs`."""
    inputs = tuple((x,) for x in range(1, 1 + len(outputs)))
    return CodeTask("attack/function", "", "f", FunctionTests(inputs, outputs, tolerance))


_EQUAL = [f"({x}) == {answer(x)!r}" for x in (1, 2, 3)]
EVERY_KIND: Mapping[str, CodeTask] = {
    "function": function(*map(answer, (1, 2, 3))),
    "check": check(*(f"assert candidate{equal}" for equal in _EQUAL)),
    "asserts": asserts(*(f"assert f{equal}" for equal in _EQUAL)),
    "stdio": CodeTask("attack/stdio", "", "", StdioTests(("1\n",), (answer(1) + "\n",))),
}
"""The same task with each kind of tests."""


def only(*kinds: str) -> Mapping[str, CodeTask]:
    """Return some of `EVERY_KIND`."""
    return {kind: EVERY_KIND[kind] for kind in kinds}


@dataclass(frozen=True)
class Attack:
    """A hostile program.

    Attributes:
        name: identifies it within its module.
        purpose: what it tries.
        source: defines `f`.
        statuses: what a judge may answer.
        tasks: the task to try it on, for each kind of tests.
    """

    name: str
    purpose: str
    source: str
    statuses: frozenset[Status] = FAILED
    tasks: Mapping[str, CodeTask] = field(default_factory=lambda: EVERY_KIND)

    def __post_init__(self) -> None:
        assert Status.PASSED not in self.statuses


_HARM = """

import ctypes
import errno
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(on_x86_64, on_aarch64, *arguments):
    number = on_x86_64 if platform.machine() == "x86_64" else on_aarch64
    if number is None:
        return -1
    typed = [ctypes.c_long(part) if type(part) is int else part for part in arguments]
    return _libc.syscall(ctypes.c_long(number), *typed)

"""
_WHEN_DONE = """

_done = []


def f(x):
    if not _done:
        try:
            _done.append(bool(harm()))
        except (OSError, ImportError, RuntimeError, AttributeError, MemoryError, ValueError) as error:
            _done.append(False)
    return right(x) if _done[0] else "no harm done"
"""


def harm(
    name: str,
    purpose: str,
    source: str,
    statuses: frozenset[Status] = NOT_PASSED,
    tasks: Mapping[str, CodeTask] = EVERY_KIND,
) -> Attack:
    """Return an attack that passes if its `harm()` returns a true value; refusals (`OSError`, ...) are no harm."""
    return Attack(name, purpose, RIGHT + _HARM + source + _WHEN_DONE, statuses, tasks)
