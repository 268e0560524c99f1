"""Not ending: loops and long calls that no signal of the program's own stops, and signals turned off or on.

Each would answer right if it were let go on for a minute.
"""

from __future__ import annotations

from ra3gym.verify import Status
from tests.verify.attacks.attack import FAILED, NOT_PASSED, OUT_OF_TIME, harm, only

_ONE = only("function")
_CHECK = only("check")
_STDIO = only("stdio")
_LATE = OUT_OF_TIME | {Status.MEMORY, Status.CRASH}

ATTACKS = [
    harm(
        "sleep",
        "sleeps past its time",
        "import time\n\n\ndef harm():\n    time.sleep(60)\n    return True\n",
        OUT_OF_TIME,
    ),
    harm(
        "deaf_loop",
        "ignores every signal, and loops",
        """
import signal
import time


def harm():
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass
    return True
""",
        OUT_OF_TIME,
        only("function", "asserts"),
    ),
    harm(
        "late_handler",
        "answers from the handler of the signal that says its time is up",
        """
import signal
import time


def harm():
    class Up(BaseException):
        pass

    def up(*args):
        raise Up

    signal.signal(signal.SIGXCPU, up)
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end:
            pass
    except Up:
        time.sleep(60)
    return True
""",
        _LATE,
        _CHECK,
    ),
    harm(
        "huge_power",
        "an operation of C's that checks for nothing",
        "def harm():\n    return 10**10**8 > len('ab')\n",
        _LATE | {Status.EXCEPTION},
        _ONE,
    ),
    harm(
        "long_count",
        "a search through a long text, quadratic in C",
        "def harm():\n    return all(('a' * (1 << 23)).count('a' * 1000 + 'b') == 0 for _ in range(10**6))\n",
        _LATE,
        _CHECK,
    ),
    harm(
        "regular_expression",
        "a pattern that takes for ever, without letting signals in",
        "import re\n\n\ndef harm():\n    return not re.match(r'(a|aa)+$', 'a' * 60 + 'b')\n",
        _LATE,
        _STDIO,
    ),
    harm(
        "endless_sort",
        "a sort of what has no end",
        "import itertools\n\n\ndef harm():\n    return sorted(itertools.repeat(0))\n",
        _LATE | FAILED,
        _ONE,
    ),
    harm(
        "deadlock",
        "waits for itself",
        "import threading\n\n\ndef harm():\n    lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()\n",
        OUT_OF_TIME,
        _CHECK,
    ),
    harm(
        "reads_its_own_pipe",
        "waits for a word that nobody says",
        "def harm():\n    return os.read(os.pipe()[0], 1)\n",
        OUT_OF_TIME,
        _STDIO,
    ),
    harm(
        "pause", "waits for a signal", "import signal\n\n\ndef harm():\n    return signal.pause()\n", OUT_OF_TIME, _ONE
    ),
    harm(
        "threads_that_never_end",
        "threads that loop in C, without the lock, and are waited for",
        """
import threading


def harm():
    threads = [threading.Thread(target=_libc.pause) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return True
""",
        OUT_OF_TIME,
        _CHECK,
    ),
    harm(
        "threads_that_compute",
        "threads that compute in C, without the lock, while the main thread waits",
        """
import hashlib
import threading


def harm():
    work = {"target": hashlib.pbkdf2_hmac, "args": ("sha256", b"a", b"b", 10**9)}
    threads = [threading.Thread(**work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return True
""",
        OUT_OF_TIME,
        only("function", "asserts", "stdio"),
    ),
    harm(
        "alarm",
        "an alarm that it does not handle",
        "import signal\n\n\ndef harm():\n    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    signal.pause()\n",
        frozenset({Status.CRASH, Status.TIMEOUT}),
        _ONE,
    ),
    harm(
        "abort",
        "ends itself by a signal",
        "def harm():\n    os.abort()\n",
        frozenset({Status.CRASH}),
        only("function", "check", "stdio"),
    ),
    harm(
        "segment_fault",
        "writes where there is nothing",
        "def harm():\n    ctypes.memset(8, 0, 8)\n",
        frozenset({Status.CRASH}),
        only("function", "check", "stdio"),
    ),
    harm(
        "illegal_system_call",
        "calls the kernel as a program of 32 bits",
        """
import mmap


def harm():
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    return platform.machine() == "x86_64" and call() > 0
""",
        NOT_PASSED,
        _ONE,
    ),
    harm(
        "deep_c_stack",
        "recursion that ends in the end of the C stack",
        """
import sys


def harm():
    sys.setrecursionlimit(10**9)
    a = []
    for _ in range(10**6):
        a = [a]
    return repr(a) and a == [[a]]
""",
        NOT_PASSED,
        only("function", "check"),
    ),
    harm(
        "stopped",
        "stops itself, so that nobody ever sees it end",
        """
import signal


def harm():
    for attempt in (lambda: signal.raise_signal(signal.SIGSTOP), lambda: os.kill(os.getpid(), signal.SIGSTOP)):
        try:
            attempt()
            return True
        except OSError:
            pass
""",
        NOT_PASSED,
        _CHECK,
    ),
    harm(
        "never_reads",
        "says what it defines, and then never takes the tests' calls off the line",
        """
import time

os.write(4, b'["f"]\\n')
time.sleep(60)


def harm():
    return True
""",
        OUT_OF_TIME | {Status.EXITED_EARLY},
        only("check", "asserts"),
    ),
    harm(
        "half_an_answer",
        "begins an answer and does not go on",
        """
import time

os.write(4, b'["f"')
time.sleep(60)


def harm():
    return True
""",
        OUT_OF_TIME | {Status.EXITED_EARLY},
        only("check", "asserts"),
    ),
]
