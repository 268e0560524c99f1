"""Exceptions that lie, or that end a test instead of failing it."""

from __future__ import annotations

from ra3gym.verify import Status
from tests.verify.attacks.attack import FAILED, LEFT, Attack, answer, asserts, check, function

_LOOP = {
    "check": check(
        f"for x, y in zip(map(candidate, [1, 2, 3]), {[answer(x) for x in (1, 2, 3)]!r}):\n    assert x == y",
        f"assert all(a == b for a, b in zip(map(candidate, [1, 2]), {[answer(1), answer(2)]!r}))",
    ),
    "asserts": asserts(
        "assert [a for a in map(f, [1])] == ['a']", "for a in (f(x) for x in [1, 2]):\n    assert a == 'a'"
    ),
}

ATTACKS = [
    Attack(
        "stop_iteration",
        "ends the loop that a test runs over its answers",
        "def f(x):\n    raise StopIteration\n",
        tasks=_LOOP,
    ),
    Attack(
        "stop_iteration_by_another_name",
        "the same by a subclass, under a lying name",
        """
class Quiet(StopIteration):
    pass


Quiet.__name__ = "ValueError"


def f(x):
    raise Quiet
""",
        tasks=_LOOP,
    ),
    Attack(
        "generator_exit", "ends the generator that a test runs", "def f(x):\n    raise GeneratorExit\n", tasks=_LOOP
    ),
    Attack(
        "own_assertion_error",
        "an exception that is named AssertionError, and says that all is well",
        """
class AssertionError(Exception):
    def __str__(self): return "ok"
    def __bool__(self): return False


def f(x):
    raise AssertionError
""",
    ),
    Attack(
        "base_exception",
        "one that is no Exception",
        "class Quiet(BaseException):\n    pass\n\n\ndef f(x):\n    raise Quiet\n",
    ),
    Attack("keyboard_interrupt", "what the user would raise", "def f(x):\n    raise KeyboardInterrupt\n"),
    Attack(
        "raising_str",
        "an exception whose message raises SystemExit",
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\n\n\ndef f(x):\n    raise E\n",
        FAILED | LEFT,
    ),
    Attack(
        "lying_str",
        "an exception whose message is of a type that raises when it is formatted",
        """
class Text(str):
    def __format__(self, spec): raise E
    def __bool__(self): raise E


class E(BaseException):
    def __str__(self): return Text("ok")


def f(x):
    raise E
""",
        FAILED | LEFT,
    ),
    Attack(
        "lying_mro",
        "an exception whose class has no honest name and no honest ancestors",
        """
class Meta(type):
    __name__ = property(lambda cls: {"ok": True})
    __mro__ = property(lambda cls: (int, str))


class E(Exception, metaclass=Meta):
    pass


def f(x):
    raise E
""",
        FAILED | LEFT,
    ),
    Attack(
        "exception_group",
        "groups nested in groups",
        """
def f(x):
    error = ValueError("x")
    for _ in range(5000):
        error = ExceptionGroup("", [error])
    raise error
""",
        FAILED | {Status.CRASH},
    ),
    Attack(
        "huge_message",
        "a message of many megabytes",
        "def f(x):\n    raise ValueError('a' * 40_000_000)\n",
        FAILED | {Status.MEMORY},
    ),
    Attack(
        "unprintable_message",
        "a message that no terminal and no file takes: a lone surrogate",
        "def f(x):\n    raise ValueError('\\ud800')\n",
    ),
    Attack(
        "circular_context",
        "an exception that is its own cause",
        "def f(x):\n    error = ValueError()\n    error.__cause__ = error.__context__ = error\n    raise error\n",
    ),
    Attack(
        "endless_recursion",
        "recursion that catches its own end and starts again",
        "def f(x):\n    try:\n        return f(x)\n    except RecursionError:\n        return f(x)\n",
        frozenset({Status.TIMEOUT, Status.EXCEPTION, Status.CRASH, Status.WRONG_ANSWER}),
        {"function": function("a")},
    ),
]
