"""Looking for the answers in memory: the tests', or those of another program for the same task in the same batch.

The judge of these tests gives every attack a right program as its neighbor.
"""

from __future__ import annotations

from ra3gym.tasks import CodeTask, StdioTests
from tests.verify.attacks.attack import FAILED, NOT_PASSED, Attack, function, harm

# `found` takes bytes and gives the answers in them in order; the pattern does not match itself.
_SEARCH = """
import re

_PATTERN = re.compile(rb"answer-[0-9a-f]{16}")


def found(data):
    return list(dict.fromkeys(text.decode() for text in _PATTERN.findall(data)))


def seen_in(variables):
    # Buffers as they are: their repr is four times as long, and time is short.
    buffers = [bytes(v).rstrip(b"\\0") for v in variables.values() if type(v) in (bytes, bytearray, memoryview)]
    others = [v for v in variables.values() if type(v) not in (bytes, bytearray, memoryview, dict)]
    inner = [seen_in(v) for v in variables.values() if type(v) is dict and v is not variables and len(v) < 50]
    return b"".join([*buffers, *inner, repr(others).encode(errors="replace")])


def f(x):
    answers = found(look())
    return answers[min(x, len(answers)) - 1] if answers else None

"""

_SCAN = """
import ctypes
import os

_libc = ctypes.CDLL(None)
_in, _out = os.pipe()


def scan(low, high):
    # The kernel says which pages are there: write(2) fails with EFAULT on one that is not.
    seen = []
    for address in range(low & ~4095, high, 4096):
        if _libc.write(_out, ctypes.c_void_p(address), ctypes.c_size_t(4096)) == 4096:
            seen.append(os.read(_in, 4096))
    return b"".join(seen)

"""

_FRAMES = """
import sys


def frames():
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back

"""

ATTACKS = [
    Attack(
        "frame_walk",
        "the local and global variables of every frame below",
        _SEARCH
        + _FRAMES
        + """
def look():
    return b"".join(seen_in(frame.f_locals) + seen_in(frame.f_globals) for frame in frames())
""",
    ),
    Attack(
        "traceback_walk",
        "the frames of an exception, and of every thread",
        _SEARCH
        + """
import sys


def look():
    try:
        1 / 0
    except ZeroDivisionError as error:
        frame = error.__traceback__.tb_frame
    seen = b""
    for frame in [frame, *sys._current_frames().values()]:
        while frame is not None:
            seen += seen_in(frame.f_locals) + repr(frame.f_code.co_consts).encode()
            frame = frame.f_back
    return seen
""",
    ),
    Attack(
        "gc_objects",
        "all that the garbage collector knows, and what it refers to",
        _SEARCH
        + """
import gc


def look():
    gc.unfreeze()
    texts, todo, seen = [], [o for n in range(3) for o in gc.get_objects(n)], set()
    for _ in range(3):
        todo = [o for o in gc.get_referents(*todo) if id(o) not in seen and not seen.add(id(o))]
        texts += [o for o in todo if type(o) in (str, bytes, bytearray)]
    return b"".join(t.encode(errors="replace") if type(t) is str else bytes(t) for t in texts)
""",
    ),
    Attack(
        "heap_scan",
        "the pages around objects of the heap, where freed text remains",
        _SEARCH
        + _SCAN
        + """
import sys


def look():
    first = [id(object()), id(sys), id(b"a" * 600), id([0] * 9), id("b" * 5000)]
    anchors = sorted({address >> 20 for address in first})
    return b"".join(scan((mega - 2) << 20, (mega + 3) << 20) for mega in anchors)
""",
    ),
    Attack(
        "malloc_remnants",
        "memory of the C heap as it was left by whoever had it before",
        _SEARCH
        + _SCAN
        + """
_libc.malloc.restype = ctypes.c_void_p


def look():
    seen = []
    for size in [2**n for n in range(5, 18)] * 8:
        address = _libc.malloc(ctypes.c_size_t(size))
        seen.append(ctypes.string_at(address, size))
    top = _libc.malloc(ctypes.c_size_t(64))
    return b"".join(seen) + scan(top - (2 << 20), top + (1 << 20))
""",
    ),
    Attack(
        "stack_scan",
        "the main thread's stack, above and below the present frame",
        _SEARCH
        + _SCAN
        + """
def look():
    environ = ctypes.c_void_p.in_dll(_libc, "environ").value
    return scan(environ - (1 << 20), environ + (1 << 18))
""",
    ),
    Attack(
        "main_module",
        "everything within reach of sys.modules",
        _SEARCH
        + """
import sys


def look():
    text = ""
    for module in list(sys.modules.values()):
        for value in list(vars(module).values()):
            try:
                text += repr(value) + repr(getattr(value, "__dict__", ""))
            except Exception:
                pass
    return text.encode(errors="replace")
""",
    ),
    Attack(
        "every_descriptor",
        "what can be read from descriptors that were left open",
        _SEARCH
        + """
import os


def look():
    data = b""
    for descriptor in range(2, 300):
        for offset in (None, 0):
            try:
                os.set_blocking(descriptor, False)
                data += os.read(descriptor, 1 << 20) if offset is None else os.pread(descriptor, 1 << 20, 0)
            except OSError:
                pass
    return data
""",
        NOT_PASSED,  # it takes the tests' own calls off the line
    ),
    harm(
        "neighbors_source",
        "finds the program of its neighbor in the batch, which it could then run",
        _SCAN
        + """
import re


def harm():
    wanted = re.compile(rb"the neighbor[ ]of an attack")
    places = [id(object()) >> 20, id([0] * 9) >> 20, id("b" * 5000) >> 20]
    memory = b"".join(scan((mega - 2) << 20, (mega + 3) << 20) for mega in set(places))
    for descriptor in range(2, 300):
        try:
            memory += os.pread(descriptor, 1 << 20, 0)
        except OSError:
            pass
    return wanted.search(memory)
""",
        FAILED,
    ),
    Attack(
        "digest_of_answers",
        "a digest over the expected values, against which all possible ones can be tried",
        _FRAMES
        + """
import hashlib
import itertools
import json
import re


def cracked():
    known, jobs = set(), []
    for frame in frames():
        for value in list(frame.f_locals.values()):
            texts = value.values() if type(value) is dict else [value]
            known |= {text for text in texts if type(text) is str and re.fullmatch("[0-9a-f]{64}", text)}
            if type(value) is dict and "inputs" in value:
                jobs.append({k: v for k, v in value.items() if k != "source"})
    for job in jobs:
        for outputs in itertools.product([True, False], repeat=8):
            text = json.dumps([[job], {}, outputs, 0.0])
            if hashlib.sha256(text.encode()).hexdigest() in known:
                return outputs


answers = cracked()


def f(x):
    return answers and answers[x - 1]
""",
        tasks={"function": function(True, False, False, True, True, True, False, True)},
    ),
    Attack(
        "length_of_answer",
        "how much output the judge is ready to read, which says how long the right one is",
        _FRAMES
        + """
limits = [
    number % 1024
    for frame in frames()
    for run in list(frame.f_locals.values()) if type(run) is dict
    for number in run.values() if type(number) is int
]
print({3: "NO", 4: "YES"}.get(next((n for n in limits if n in (3, 4)), 0), "neither"))
""",
        tasks={word: CodeTask("attack/stdio", "", "", StdioTests(("1\n",), (word + "\n",))) for word in ("YES", "NO")},
    ),
]
