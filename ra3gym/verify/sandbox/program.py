"""Running the program under test: its function on given inputs, as a whole script, or called by tests elsewhere.

The process holds nothing but the program and its inputs: no expected answer, no test, no other program.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import functools
import gc
import io
import operator
import os
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

from . import calls, child, encoding

_BYTE_ORDER_MARK = "\ufeff"
_STREAMS = {
    f"{folder}/{name}": number
    for number, word in enumerate(("stdin", "stdout", "stderr"))
    for folder, name in (("/dev", word), ("/dev/fd", str(number)), ("/proc/self/fd", str(number)))
}
"""The names of the standard streams as files, which need a /proc that programs do not have."""
_MUTABLE = (list, dict, set, bytearray, deque, Counter, OrderedDict, defaultdict)
_ABILITIES = {"__len__": "len", "__getitem__": "item", "__iter__": "iter"}
_ACTIONS: dict[str, Callable[..., Any]] = {
    "get": getattr,
    "set": setattr,
    "truth": bool,
    "len": len,
    "item": operator.getitem,
    "iter": lambda subject: (item for item in subject),  # a generator: the encoding takes its items up to a cap
}


def run(job: dict[str, Any]) -> bool:
    """Run the program of a job, reporting its results, and return whether it reached its end."""
    code = _compiled(job["source"].removeprefix(_BYTE_ORDER_MARK))
    if code is None:
        return False
    preamble = compile(job.get("preamble", ""), "<preamble>", "exec", dont_inherit=True)
    if job["kind"] == "script":
        return _run_script(preamble, code)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(preamble, module.__dict__)
    if job["kind"] == "function":
        exec(code, module.__dict__)
        return _answer_inputs(module.__dict__, job["entry_point"], job["inputs"])
    tests = calls.Connection(child.CALLS)  # before the program runs, which could replace the class
    exec(code, module.__dict__)
    try:
        _Service(tests, module.__dict__, job["names"]).serve()
    except calls.Gone:  # the tests ended in the middle of an answer
        return False
    return True


def _compiled(source: str) -> types.CodeType | None:
    try:
        return compile(source, "<solution>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        child.report({"syntax": child.described(error)})
        return None


def _run_script(preamble: types.CodeType, code: types.CodeType) -> bool:
    sys.modules["__main__"] = types.ModuleType("__main__")
    _name_streams()
    exec(preamble, sys.modules["__main__"].__dict__)
    try:
        exec(code, sys.modules["__main__"].__dict__)
    except SystemExit as end:  # a usual end of a whole program
        if end.code not in (None, 0):
            raise
    _end_script()
    return True


def _end_script() -> None:
    """Do what the interpreter does at the end of a script: await threads, run exit functions, write files out.

    The files come before the collection: as parts of a cycle they would be closed in any order, and lose what is left.
    """
    if (threading := sys.modules.get("threading")) is not None:
        threading._shutdown()
    atexit._run_exitfuncs()
    child.flush_output()
    for kind in (io.TextIOWrapper, io.BufferedWriter):  # the outer buffers first
        for file in [each for each in gc.get_objects() if type(each) is kind]:
            with contextlib.suppress(Exception):
                file.flush()
    sys.modules.pop("__main__", None)
    gc.collect()


def _name_streams() -> None:
    """Let `open` find the standard streams under their names, such as /dev/stdin."""
    plain_open, fspath, dup, streams = io.open, os.fspath, os.dup, _STREAMS

    @functools.wraps(plain_open)
    def open_file(file: Any, *args: Any, **kwargs: Any) -> Any:
        name = fspath(file) if hasattr(file, "__fspath__") else file
        number = streams.get(name) if isinstance(name, str) else None
        return plain_open(file if number is None else dup(number), *args, **kwargs)

    builtins.open = io.open = open_file


def _answer_inputs(namespace: dict[str, Any], entry_point: str, inputs: list[str]) -> bool:
    function = _resolved(namespace, entry_point)
    if not callable(function):
        child.report({"missing": entry_point})
        return False
    for text in inputs:
        arguments = encoding.loads(text, lambda body: body)
        try:
            result: dict[str, Any] = {"value": encoding.dumps(function(*arguments))}
        except SystemExit:
            raise
        except MemoryError:
            result = {"memory": True}
        except BaseException as error:
            result = {"error": child.described(error)}
        child.report(result)
    return True


def _resolved(namespace: dict[str, Any], name: str) -> Any:
    """Return what the program defines under a name, `None` for nothing.

    `Class.method`, the form of LeetCode's entry points, is the method of an instance made without arguments.
    """
    owner, _, method = name.partition(".")
    if owner not in namespace:
        return None
    return getattr(namespace[owner](), method, None) if method else namespace[owner]


def _may_change(argument: Any) -> bool:
    """Return whether a call may change an argument in place, or an item of a tuple."""
    return type(argument) in _MUTABLE or (type(argument) is tuple and any(map(_may_change, argument)))


class _Service:
    """Answers the tests' requests, and keeps the objects that it returned, by number."""

    def __init__(self, tests: calls.Connection, namespace: dict[str, Any], names: list[str]) -> None:
        self._tests = tests
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._named = {name: _resolved(namespace, name) for name in names}
        self._named = {name: value for name, value in self._named.items() if value is not None}

    def serve(self) -> None:
        """List the names that are defined, then answer until the tests close the connection."""
        self._tests.send(encoding.text_of(list(self._named)))
        while (request := self._tests.receive()) is not None:
            kind, target, *rest = encoding.parse(request)
            subject = self._named[target] if type(target) is str else self._objects[target]
            args, kwargs = (encoding.decode(tree, self._object) for tree in rest)
            action = subject if kind == "call" else functools.partial(_ACTIONS[kind], subject)
            given = [*enumerate(args), *kwargs.items()]
            before = [*rest[0], *(tree for _, tree in rest[1][encoding.Tag.DICT])]
            answer = self._attempt(functools.partial(action, *args, **kwargs), given, before)
            self._tests.send(answer)

    def _attempt(self, action: Callable[[], Any], given: list[tuple[int | str, Any]], before: list[Any]) -> str:
        """Return the answer to a request with the arguments `given`, by position or keyword; `before`: their trees."""
        try:
            value = encoding.encode(action(), self._number)
            changed = []
            for (place, argument), tree in zip(given, before, strict=True):
                if _may_change(argument):
                    after = encoding.encode(argument, self._number)
                    if after != tree:
                        changed.append([place, after])
            return encoding.text_of(["value", value, changed])
        except (SystemExit, calls.Gone):
            raise
        except BaseException as error:
            names = [kind.__name__ for kind in type(error).__mro__]
            return encoding.text_of(["raise", names, child.message_of(error)])

    def _number(self, value: Any) -> list[Any]:
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)  # kept alive, so that no other object gets its id
        abilities = [ability for method, ability in _ABILITIES.items() if hasattr(type(value), method)]
        return [number, type(value).__name__, abilities]

    def _object(self, body: Any) -> Any:
        return self._named[body] if type(body) is str else self._objects[body]
