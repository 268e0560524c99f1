"""Running the program under test: its functions on given inputs, as a whole script, or called by tests elsewhere.

It runs in its process with nothing beside it but its own inputs: no expected answer, no test, no other program.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import calls, child, encoding
else:
    import calls
    import child
    import encoding

_MUTABLE = (list, dict, set, bytearray)
_ACTIONS: dict[str, Callable[..., Any]] = {"get": getattr, "set": setattr, "truth": bool}


def run(job: dict[str, Any]) -> bool:
    """Run the job's program; whether it came to its end. What it does on the way is reported."""
    code = _compiled(job["source"])
    if code is None:
        return False
    if job["kind"] == "script":
        return _run_script(code)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    if job["kind"] == "function":
        exec(code, module.__dict__)
        return _answer_inputs(module.__dict__, job["entry_point"], job["inputs"])
    line = calls.Line(child.CALLS)  # made first: the program cannot put its own in the place
    exec(code, module.__dict__)
    try:
        _Service(line, module.__dict__, job["names"]).serve()
    except calls.Gone:  # the tests ended in the middle of an answer
        return False
    return True


def _compiled(source: str) -> types.CodeType | None:
    try:
        return compile(source, "<solution>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        child.report({"syntax": child.described(error)})
        return None


def _run_script(code: types.CodeType) -> bool:
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        exec(code, main.__dict__)
    except SystemExit as leave:  # how a whole program may well end
        if leave.code not in (None, 0):
            raise
    return True


def _answer_inputs(namespace: dict[str, Any], entry_point: str, inputs: list[str]) -> bool:
    function = _resolved(namespace, entry_point)
    if not callable(function):
        child.report({"missing": entry_point})
        return False
    for text in inputs:
        arguments = encoding.loads(text, lambda body: body)
        try:
            frame: dict[str, Any] = {"value": encoding.dumps(function(*arguments))}
        except SystemExit:
            raise
        except MemoryError:
            frame = {"memory": True}
        except BaseException as error:
            frame = {"error": child.described(error)}
        child.report(frame)
    return True


def _resolved(namespace: dict[str, Any], name: str) -> Any:
    """What the program defines under a name; `Class.method`, as LeetCode has it, is of a class without arguments."""
    owner, _, method = name.partition(".")
    if owner not in namespace:
        return None
    return getattr(namespace[owner](), method, None) if method else namespace[owner]


class _Service:
    """Answers the tests' calls, and keeps the objects it gave out by number."""

    def __init__(self, line: calls.Line, namespace: dict[str, Any], names: list[str]) -> None:
        self._line = line
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._named = {name: _resolved(namespace, name) for name in names}
        self._named = {name: value for name, value in self._named.items() if value is not None}

    def serve(self) -> None:
        """Say what is there, then answer until the tests hang up."""
        self._line.send(encoding.text_of(list(self._named)))
        while (request := self._line.receive()) is not None:
            kind, target, *rest = encoding.parse(request)
            subject = self._named[target] if type(target) is str else self._objects[target]
            args, kwargs = (encoding.decode(tree, self._object) for tree in rest)
            action = subject if kind == "call" else functools.partial(_ACTIONS[kind], subject)
            answer = self._attempt(functools.partial(action, *args, **kwargs), args, rest[0])
            self._line.send(answer)

    def _attempt(self, action: Callable[[], Any], args: list[Any], before: list[Any]) -> str:
        try:
            value = encoding.encode(action(), self._number)
            after = [
                [position, encoding.encode(argument, self._number)]
                for position, argument in enumerate(args)
                if type(argument) in _MUTABLE
            ]
            changed = [[position, tree] for position, tree in after if tree != before[position]]
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
            self._objects.append(value)  # kept, so its id stays its own
        return [number, type(value).__name__]

    def _object(self, body: Any) -> Any:
        return self._named[body] if type(body) is str else self._objects[body]
