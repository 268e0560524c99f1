"""Running assert-style tests against a program in another process.

The tests get stand-ins for the program's names that they use. Calling a stand-in sends a request to the program. The
answer is decoded into values of exact builtin types, so no object of the program takes part in a comparison. Expected
values never leave this process.
"""

from __future__ import annotations

import builtins
import types
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from . import calls, child, encoding

_FILE = "<tests>"
_MESSAGE_CHARS = 500
_CHANGEABLE = (list, dict, set, bytearray, tuple, deque)
# Raised by a call inside a loop, these would end the loop silently.
_ENDS_LOOPS = (StopIteration, StopAsyncIteration)


class Tests(NamedTuple):
    """Compiled tests of one task.

    Attributes:
        context: the task's prompt, whose helpers the tests may call.
        setup: runs before the first test.
        statements: one for each test.
        source: the lines of `setup`, which holds the asserts of tests in HumanEval's form.
        names: names that the program may define and the tests use.
        entry_point: the name that the program must define.
        stop_early: stop after the first failed test.
    """

    context: types.CodeType
    setup: types.CodeType
    statements: list[types.CodeType]
    source: list[str]
    names: list[str]
    entry_point: str
    stop_early: bool


def compiled(tests: dict[str, Any]) -> Tests:
    """Compile tests from their JSON form."""
    return Tests(
        context=_compiled(tests["context"], "<prompt>"),
        setup=_compiled(tests["setup"], _FILE),
        statements=[_compiled(statement, "<statement>") for statement in tests["statements"]],
        source=tests["setup"].splitlines(),
        names=tests["names"],
        entry_point=tests["entry_point"],
        stop_early=tests["stop_early"],
    )


def _compiled(source: str, file: str) -> types.CodeType:
    return compile(source, file, "exec", dont_inherit=True)


def run(tests: Tests) -> bool:
    """Run the tests, report on each, and return whether all were run."""
    program = _Program(calls.Connection(child.CALLS))
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        defined = program.names()
        if tests.entry_point not in defined:
            child.report({"missing": tests.entry_point})
            return False
        exec(tests.context, namespace)
        namespace.update({name: Remote(program, name) for name in tests.names if name in defined})
        namespace["candidate"] = Remote(program, tests.entry_point)
        exec(tests.setup, namespace)
        for statement in tests.statements:
            result = _result(statement, namespace, tests, program)
            child.report(result)
            if tests.stop_early and "ok" not in result:
                return False
    except calls.TooLong:
        child.report({"flood": True})
        return False
    except calls.Gone as reason:
        child.report({"gone": str(reason)})
        return False
    return True


def _result(statement: types.CodeType, namespace: dict[str, Any], tests: Tests, program: _Program) -> dict[str, Any]:
    """Run one test and return the report on it; raises `Gone` when the program cannot be asked."""
    try:
        exec(statement, namespace)
    except calls.Gone:
        raise
    except MemoryError:
        return {"memory": True}
    except BaseException as error:
        if program.gone is not None:
            raise program.gone from None
        raised: str | None = getattr(error, "raised_by_program", None)
        if raised is None and isinstance(error, AssertionError):
            return {"wrong": str(error)[:_MESSAGE_CHARS], "line": _line_of(error, tests)}
        return {"error": raised or child.described(error)}
    if program.gone is not None:  # the test has a bare `except`
        raise program.gone
    return {"ok": True}


def _line_of(error: BaseException, tests: Tests) -> str:
    """Return the line of `setup` in which an exception was raised, empty when it was raised elsewhere."""
    number, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE:
            number = trace.tb_lineno
        trace = trace.tb_next
    return tests.source[number - 1].strip()[:300] if number else ""


class _Program:
    """The program in the other process."""

    def __init__(self, connection: calls.Connection) -> None:
        self._connection = connection
        self._remotes: dict[int, Remote] = {}
        self.gone: calls.Gone | None = None

    def names(self) -> set[str]:
        """Receive the program's first message: the names that it defines."""
        names = self._answer()
        return {name for name in names if type(name) is str}

    def ask(self, kind: str, target: str | int, /, *args: Any, **kwargs: Any) -> Any:
        """Send a request and return the answer; arguments that the program changed in place change here as well."""
        try:
            return self._ask(kind, target, args, kwargs)
        except calls.Gone as gone:
            self.gone = gone
            raise

    def _ask(self, kind: str, target: str | int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        trees = [encoding.encode(part, _sent) for part in (list(args), kwargs)]
        self._connection.send(encoding.text_of([kind, target, *trees]))
        try:
            match self._answer():
                case ["value", tree, [*changed]]:
                    for place, new in changed:
                        argument = kwargs[place] if type(place) is str else args[place]
                        _replace(argument, encoding.decode(new, self._received))
                    return encoding.decode(tree, self._received)
                case ["raise", [*names], str(text)]:
                    error = _raised(names, text)
                case _:
                    raise calls.Gone("not an answer")
        except (encoding.DecodeError, ValueError, TypeError, LookupError) as reason:
            raise calls.Gone(f"not an answer: {reason}") from None
        raise error

    def _answer(self) -> list[Any]:
        text = self._connection.receive()
        if text is None:
            raise calls.Gone("the program has ended")
        try:
            answer = encoding.parse(text)
        except encoding.DecodeError as error:
            raise calls.Gone(str(error)) from None
        if type(answer) is not list:
            raise calls.Gone("not an answer")
        return answer

    def _received(self, body: Any) -> Any:
        match body:
            case [int(number), str(kind), [*abilities]]:
                if number not in self._remotes:
                    self._remotes[number] = _remote_class(abilities)(self, number, kind)
                return self._remotes[number]
        raise encoding.DecodeError("an object needs its number, type and abilities")


class Remote:
    """Stands for a function, class or object of the program; equal only to itself."""

    def __init__(self, program: _Program, target: str | int, kind: str = "function") -> None:
        self.__dict__.update(_remote=program, _target=target, _kind=kind)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._remote.ask("call", self._target, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look for such names
            raise AttributeError(name)
        return self._remote.ask("get", self._target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote.ask("set", self._target, name, value)

    def __bool__(self) -> bool:
        return self._remote.ask("truth", self._target) is True

    def __repr__(self) -> str:
        return f"<a {self._kind[:80]} of the program>"


def _length(remote: Remote) -> Any:
    return remote._remote.ask("len", remote._target)


def _item(remote: Remote, index: Any) -> Any:
    return remote._remote.ask("item", remote._target, index)


def _items(remote: Remote) -> Iterator[Any]:
    return iter(remote._remote.ask("iter", remote._target))


_METHODS = {"len": ("__len__", _length), "item": ("__getitem__", _item), "iter": ("__iter__", _items)}


def _remote_class(abilities: list[Any]) -> type[Remote]:
    """Return the class of stand-ins for objects of these abilities, so that `isinstance(x, Iterable)` is right."""
    return _remote_class_of(tuple(ability in abilities for ability in _METHODS))


@cache
def _remote_class_of(abilities: tuple[bool, ...]) -> type[Remote]:
    methods = [method for method, is_there in zip(_METHODS.values(), abilities, strict=True) if is_there]
    return type("Remote", (Remote,), dict(methods)) if methods else Remote


def _sent(value: Any) -> Any:
    if isinstance(value, Remote):
        return value._target
    raise TypeError(f"a test cannot pass a {type(value).__name__} to a program in another process")


def _replace(argument: Any, new: Any) -> None:
    """Copy what the program left in a mutable argument into the argument itself."""
    if type(argument) is not type(new):
        raise calls.Gone("a changed argument is of another type")
    if type(argument) is tuple:
        for item, new_item in zip(argument, new, strict=True):
            if isinstance(item, _CHANGEABLE):
                _replace(item, new_item)
    elif isinstance(argument, list | bytearray):
        argument[:] = new
    elif isinstance(argument, deque):
        argument.clear()
        argument.extend(new)
    elif isinstance(argument, set):
        argument.clear()
        argument.update(new)
    elif isinstance(argument, dict):
        argument.clear()
        for key, item in new.items():  # `update` of a Counter would add the counts
            argument[key] = item


def _raised(names: list[Any], text: str) -> Exception:
    """Make an exception like the one that the program raised, of the nearest builtin class."""
    kinds = [getattr(builtins, name, None) for name in names if type(name) is str]
    kind = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)), Exception)
    if issubclass(kind, _ENDS_LOOPS):
        kind = RuntimeError
    try:
        error = kind(text)
    except TypeError:  # UnicodeDecodeError takes five arguments, for example
        error = Exception(text)
    # The ignore: it must be of the builtin class itself, which declares no such attribute.
    error.raised_by_program = f"{names[0]}: {text}"[:300] if names else text[:300]  # type: ignore[attr-defined]
    return error
