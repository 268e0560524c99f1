"""Ending early, by every door, with as much as possible said on the way out."""

from __future__ import annotations

from ra3gym.verify import Status
from tests.verify.attacks.attack import FAILED, LEFT, NOT_PASSED, Attack, check, only

_SAY = r"""
import os
import sys
import threading

SAYINGS = b'{"ok": true}\n{"ok": true}\n{"ok": true}\n["value", true, []]\n'


def say():
    for descriptor in range(0, 65):
        try:
            os.set_blocking(descriptor, False)
            os.write(descriptor, SAYINGS)
        except OSError:
            pass


"""
_TOKEN = r"""
frame, token = sys._getframe(), ""
while frame is not None:
    token = frame.f_locals.get("token") or token
    frame = frame.f_back


def f(x):
    say()
    os.write(3, token.encode())
    os._exit(0)
"""

ATTACKS = [
    Attack("sys_exit_at_once", "leaves with success before a test", "import sys\n\nsys.exit(0)\n", LEFT | FAILED),
    Attack("os_exit_at_once", "leaves without a word", "import os\n\nos._exit(0)\n", LEFT | FAILED),
    Attack(
        "sys_exit_in_a_call", "leaves in the middle of a test", "def f(x):\n    raise SystemExit(0)\n", LEFT | FAILED
    ),
    Attack("quit", "the interpreter's own way", "def f(x):\n    quit()\n", LEFT | FAILED),
    Attack(
        "lying_exit_code",
        "a SystemExit whose code equals all",
        """
class Liar(int):
    def __eq__(self, other): return True


class Leave(SystemExit):
    code = Liar()


def f(x):
    raise Leave
""",
        LEFT | FAILED | {Status.EXCEPTION},
    ),
    Attack(
        "says_and_exits", "forges reports on all descriptors, then leaves", _SAY + "say()\nos._exit(0)\n", NOT_PASSED
    ),
    Attack(
        "token",
        "finds the word that says a run was finished, forges reports and says it",
        _SAY + _TOKEN,
        NOT_PASSED,
    ),
    Attack(
        "at_exit",
        "says it when the interpreter ends",
        _SAY + "import atexit\n\natexit.register(say)\n\n\ndef f(x):\n    sys.exit(0)\n",
        NOT_PASSED,
    ),
    Attack(
        "exception_hook",
        "says it as the last handler of an exception",
        _SAY
        + """
sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *args: say()


def f(x):
    threading.Thread(target=lambda: 1 / 0).start()
    raise ValueError
""",
        NOT_PASSED,
    ),
    Attack(
        "deleted",
        "says it, and leaves, when an object is thrown away",
        _SAY
        + """
class Late:
    def __del__(self):
        say()
        os._exit(0)


def f(x):
    return Late()
""",
        NOT_PASSED,
    ),
    Attack(
        "exit_by_a_thread",
        "a thread says it and leaves while the main one waits",
        _SAY
        + """
def leave():
    say()
    os._exit(0)


def f(x):
    threading.Thread(target=leave).start()
    threading.Event().wait()
""",
        NOT_PASSED,
    ),
    Attack(
        "main_thread_ends",
        "the main thread ends alone; another lives on and says it",
        _SAY
        + """
import ctypes


def go_on():
    for _ in range(1000):
        say()


def f(x):
    threading.Thread(target=go_on).start()
    ctypes.CDLL(None).pthread_exit(None)
""",
        NOT_PASSED,
    ),
    Attack(
        "closed_descriptors",
        "closes every descriptor, and goes on",
        "import os\n\nos.closerange(0, 256)\n\n\ndef f(x):\n    while True:\n        pass\n",
        NOT_PASSED,
        only("function", "asserts"),
    ),
    Attack(
        "swapped_descriptors",
        "puts its own pipe in the place of the line and the reports, and answers itself",
        """
import os

read, write = os.pipe()
for descriptor in (0, 3, 4):
    os.dup2(write if descriptor == 3 else read, descriptor)
os.write(write, b'["value", true, []]\\n' * 9)


def f(x):
    return "answer-"
""",
        NOT_PASSED,
    ),
    Attack(
        "exit_where_an_error_is_due",
        "leaves where a test with a bare `except` expects an exception",
        "import os\n\n\ndef f(x):\n    if x < 0:\n        os._exit(0)\n    return x\n",
        LEFT | FAILED,
        {
            "last": check(
                "assert candidate(1) == 1", "try:\n    candidate(-1)\nexcept:\n    pass\nelse:\n    assert False"
            ),
            "base": check(
                "try:\n    candidate(-1)\n    assert False\nexcept BaseException as e:\n    assert type(e) != int"
            ),
        },
    ),
]
