"""Changing the language under the checker's feet, in the one process where a program can."""

from __future__ import annotations

from tests.verify.attacks.attack import FAILED, NOT_PASSED, Attack, asserts, check, function

_POLY = '''\
def poly(xs: list, x: float):
    """Evaluates polynomial with coefficients xs at point x."""
    return sum(c * x**i for i, c in enumerate(xs))


def f(xs: list):
    """Finds x such that poly(x) = 0."""
'''
_POLY_TEST = "for xs in ([1, 2], [-6, 11, -6, 1]):\n    assert abs(poly(xs, candidate(list(xs)))) < 1e-4"

_OPEN_PROMPT = "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\ndef f(xs):\n"

_WRONG = "\n\ndef f(x):\n    return 'answer-'\n"


def _patch(name: str, purpose: str, source: str) -> Attack:
    """An attack that changes something, and then answers wrong; it may well trip over what it changed."""
    return Attack(name, purpose, source + _WRONG, NOT_PASSED)


ATTACKS = [
    _patch(
        "builtins",
        "functions that comparing code may use, all of them agreeing",
        """
import builtins

for name in ("len", "isinstance", "issubclass", "sorted", "all", "any", "abs", "hash", "callable", "repr", "id"):
    setattr(builtins, name, lambda *args, **kwargs: True)
builtins.type = lambda *args: str
""",
    ),
    _patch(
        "iteration",
        "zip, map, enumerate and range that give nothing to compare",
        """
import builtins

for name in ("zip", "map", "filter", "enumerate", "range", "iter", "reversed"):
    setattr(builtins, name, lambda *args, **kwargs: iter(()))
""",
    ),
    _patch(
        "assertion_error",
        "an AssertionError that cannot be raised or caught",
        """
import builtins


class Silent(Exception):
    def __new__(cls, *args): raise SystemExit(0)


builtins.AssertionError = builtins.Exception = builtins.BaseException = Silent
""",
    ),
    _patch(
        "import_function",
        "an __import__ that hands out modules of its own",
        """
import builtins
import types


class Agreeing(types.ModuleType):
    def __getattr__(self, name): return lambda *args, **kwargs: True


builtins.__import__ = lambda name, *args, **kwargs: Agreeing(name)
""",
    ),
    _patch(
        "import_hooks",
        "finders on sys.meta_path and sys.path_hooks that answer for every module",
        """
import sys
import types


class Finder:
    def find_spec(self, name, path=None, target=None):
        from importlib.machinery import ModuleSpec
        return ModuleSpec(name, self)
    def create_module(self, spec): return types.ModuleType(spec.name)
    def exec_module(self, module): module.check = module.loads = lambda *args: True


sys.meta_path.insert(0, Finder())
sys.path_hooks.insert(0, lambda path: Finder())
sys.path_importer_cache.clear()
""",
    ),
    _patch(
        "modules",
        "sys.modules full of impostors",
        """
import sys
import types

impostor = types.ModuleType("impostor")
impostor.__getattr__ = lambda name: lambda *args, **kwargs: True
own = ["child", "calls", "encoding", "program", "tests", "zygote"]
for name in [*sys.modules, *own, "sandbox", *(f"sandbox.{name}" for name in own), "solution"]:
    if name not in ("builtins", "sys"):
        sys.modules[name] = impostor
""",
    ),
    _patch(
        "json",
        "an encoder that writes what it likes",
        """
import json

for owner in (json, json.JSONEncoder, json.encoder):
    for name in ("dumps", "encode", "iterencode", "c_make_encoder", "encode_basestring_ascii"):
        if hasattr(owner, name):
            setattr(owner, name, lambda *args, **kwargs: '{"ok": true}')
json.loads = json.JSONDecoder.decode = lambda *args, **kwargs: {"ok": True}
""",
    ),
    _patch(
        "own_side_of_the_judge",
        "the sandbox's own functions, found through the frames below, replaced by agreeing ones",
        """
import sys

frame, patched = sys._getframe(), 0
while frame is not None:
    for module in [value for value in frame.f_globals.values() if type(value) is type(sys)]:
        if module.__name__.rpartition(".")[2] in ("child", "calls", "encoding", "program"):
            module.dumps = module.text_of = lambda *args, **kwargs: '{"ok": true}'
            module.encode = lambda *args, **kwargs: True
            module.described = lambda error: "ok"
            patched += 1
    frame = frame.f_back
""",
    ),
    _patch(
        "trace",
        "a trace function that rewrites the variables of the frames below",
        """
import ctypes
import sys


def trace(frame, event, arg):
    for name in ("value", "answer", "finished", "result", "content"):
        if name in frame.f_locals:
            frame.f_locals[name] = {"ok": True}
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
    return trace


frame = sys._getframe()
while frame is not None:
    frame.f_trace = trace
    frame = frame.f_back
sys.settrace(trace)
""",
    ),
    _patch(
        "profile",
        "a profiler that raises and rewrites at every call and return",
        """
import sys
import threading


def profile(frame, event, arg):
    if "value" in frame.f_locals:
        frame.f_locals["value"] = True
    if event == "c_exception":
        raise SystemExit(0)


sys.setprofile(profile)
threading.setprofile(profile)
""",
    ),
    _patch(
        "str_slots",
        "str.__eq__ itself, overwritten in the type's memory",
        """
import ctypes

dictionary = ctypes.py_object.from_address(id(str.__dict__) + 2 * ctypes.sizeof(ctypes.c_void_p)).value
dictionary["__eq__"] = lambda self, other: True
ctypes.pythonapi.PyType_Modified(ctypes.py_object(str))
""",
    ),
    _patch(
        "small_integers",
        "the interpreter's own 1 and 2, made 3",
        """
import ctypes

for number in (1, 2):
    ctypes.c_uint32.from_address(id(number) + 24).value = 3
""",
    ),
    _patch(
        "leaving_and_writing",
        "os._exit, os.write and signal handlers that answer for the program",
        r"""
import os
import signal

write = os.write
os.write = lambda descriptor, data: write(descriptor, b'{"ok": true}\n{"value": "true"}\n') and len(data)
os._exit = lambda code: None
signal.signal(signal.SIGALRM, lambda *args: write(3, b'{"ok": true}\n'))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
""",
    ),
    _patch(
        "standard_output",
        "a sys.stdout that raises, answers and lies",
        """
import sys


class Liar:
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): raise SystemExit(0)


sys.stdout = sys.stderr = sys.stdin = sys.__stdout__ = Liar()
""",
    ),
    _patch("recursion_limit", "a recursion limit that leaves no room", "import sys\n\nsys.setrecursionlimit(12)\n"),
    _patch(
        "gc_callbacks",
        "callbacks of the collector, which run in the middle of the checker",
        """
import gc

gc.callbacks.append(lambda phase, info: (_ for _ in ()).throw(SystemExit(0)))
gc.set_threshold(1, 1, 1)
""",
    ),
    _patch(
        "own_namespace",
        "the names that tests use, defined by the program: check, candidate, assert helpers, builtins, modules",
        """
check = candidate = METADATA = lambda *args, **kwargs: True
isclose = set = sorted = abs = len = lambda *args: 0
math = __builtins__ = {"AssertionError": None}
""",
    ),
    Attack(
        "helper_of_the_prompt",
        "redefines the function that the prompt gives and the test trusts (HumanEval/32)",
        _POLY.split("def f")[0] + "def f(xs):\n    return 0.5\n\n\ndef poly(xs, x):\n    return 0.0\n",
        FAILED,
        {"check": check(_POLY_TEST, prompt=_POLY)},
    ),
    Attack(
        "helper_of_an_open_prompt",
        "the same where the prompt ends with a `def` line, and is no Python as it stands",
        "def poly(xs, x):\n    return 0.0\n\n\ndef f(xs):\n    return 0.5\n",
        FAILED,
        {"check": check(_POLY_TEST, prompt=_OPEN_PROMPT)},
    ),
    Attack(
        "helper_of_the_setup",
        "redefines a function and a module that the tests' set-up brings",
        "def close(a, b):\n    return True\n\n\nmath = close\n\n\ndef f(x):\n    return 0.5\n",
        FAILED,
        {
            "asserts": asserts(
                "assert close(f(1), 2)",
                "assert math.isclose(f(1), 2)",
                setup="import math\n\ndef close(a, b):\n    return abs(a - b) < 1e-6\n",
            ),
            "function": function(2.0, tolerance=1e-6),
        },
    ),
]
