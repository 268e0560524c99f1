"""Running assert-style tests against a program in another process.

The tests see stand-ins for the names they use of the program: calling one asks the program, and what comes back is
decoded into values of exact builtin types, so no object of the program's making takes part in a comparison. Expected
values never leave this process.
"""

from __future__ import annotations

import builtins
import types
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import calls, child, encoding
else:
    import calls
    import child
    import encoding

_FILE = "<tests>"
# Raised out of a call in the middle of a loop, these would end it quietly.
_ENDS_LOOPS = (StopIteration, StopAsyncIteration)


class Exam(NamedTuple):
    """Tests, compiled.

    `context` is the task's own prompt, whose helpers the tests may call. `names` are the program's to define; without
    the `entry_point` there is nothing to test.
    """

    context: types.CodeType
    setup: types.CodeType
    statements: list[types.CodeType]
    source: list[str]
    """The lines of `setup`, where an assert of HumanEval's stands."""
    names: list[str]
    entry_point: str
    stop_early: bool


def compiled(exam: dict[str, Any]) -> Exam:
    """An exam from its JSON form."""
    return Exam(
        context=_compiled(exam["context"], "<prompt>"),
        setup=_compiled(exam["setup"], _FILE),
        statements=[_compiled(statement, "<statement>") for statement in exam["statements"]],
        source=exam["setup"].splitlines(),
        names=exam["names"],
        entry_point=exam["entry_point"],
        stop_early=exam["stop_early"],
    )


def _compiled(source: str, file: str) -> types.CodeType:
    return compile(source, file, "exec", dont_inherit=True)


def run(exam: Exam) -> bool:
    """Run the tests and report each; whether all were run."""
    program = _Program(calls.Line(child.CALLS))
    namespace: dict[str, Any] = {"__name__": "tests"}
    try:
        defined = program.names()
        if exam.entry_point not in defined:
            child.report({"missing": exam.entry_point})
            return False
        exec(exam.context, namespace)
        namespace.update({name: Remote(program, name) for name in exam.names if name in defined})
        namespace["candidate"] = Remote(program, exam.entry_point)
        exec(exam.setup, namespace)
        for statement in exam.statements:
            frame = _outcome(statement, namespace, exam, program)
            child.report(frame)
            if exam.stop_early and "ok" not in frame:
                return False
    except calls.TooLong:
        child.report({"flood": True})
        return False
    except calls.Gone as reason:
        child.report({"gone": str(reason)})
        return False
    return True


def _outcome(statement: types.CodeType, namespace: dict[str, Any], exam: Exam, program: _Program) -> dict[str, Any]:
    """The report on one test; `Gone` passes through."""
    try:
        exec(statement, namespace)
    except calls.Gone:
        raise
    except MemoryError:
        return {"memory": True}
    except BaseException as error:
        if program.gone is not None:
            raise program.gone from None
        said: str | None = getattr(error, "program_said", None)
        if said is None and isinstance(error, AssertionError):
            return {"wrong": str(error)[:300] or _line_of(error, exam)}
        return {"error": said or child.described(error)}
    if program.gone is not None:  # a bare `except` of the test's swallowed it
        raise program.gone
    return {"ok": True}


def _line_of(error: BaseException, exam: Exam) -> str:
    """The line of the set-up that an exception came through, empty when it came through none."""
    number, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE:
            number = trace.tb_lineno
        trace = trace.tb_next
    return exam.source[number - 1].strip()[:300] if number else ""


class _Program:
    """The program in the other process."""

    def __init__(self, line: calls.Line) -> None:
        self._line = line
        self._remotes: dict[int, Remote] = {}
        self.gone: calls.Gone | None = None

    def names(self) -> set[str]:
        """What the program defines of the names asked for; its first word."""
        names = self._answer()
        return {name for name in names if type(name) is str}

    def ask(self, kind: str, target: str | int, /, *args: Any, **kwargs: Any) -> Any:
        """Do something with a target; arguments that it changed in place are changed here as well."""
        try:
            return self._ask(kind, target, args, kwargs)
        except calls.Gone as gone:
            self.gone = gone
            raise

    def _ask(self, kind: str, target: str | int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        trees = [encoding.encode(part, _sent) for part in (list(args), kwargs)]
        self._line.send(encoding.text_of([kind, target, *trees]))
        try:
            match self._answer():
                case ["value", tree, [*changed]]:
                    for position, new in changed:
                        _replace(args[position], encoding.decode(new, self._received))
                    return encoding.decode(tree, self._received)
                case ["raise", [*names], str(text)]:
                    error = _raised(names, text)
                case _:
                    raise calls.Gone("not an answer")
        except (encoding.DecodeError, ValueError, TypeError, IndexError) as reason:
            raise calls.Gone(f"not an answer: {reason}") from None
        raise error

    def _answer(self) -> list[Any]:
        text = self._line.receive()
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
            case [int(number), str(kind)]:
                if number not in self._remotes:
                    self._remotes[number] = Remote(self, number, kind)
                return self._remotes[number]
        raise encoding.DecodeError("an object needs its number and type")


class Remote:
    """Stands for a function, class or object of the program's; equal to itself alone."""

    def __init__(self, program: _Program, target: str | int, kind: str = "function") -> None:
        self.__dict__.update(_remote=program, _target=target, _kind=kind)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._remote.ask("call", self._target, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as what copy and pickle look for
            raise AttributeError(name)
        return self._remote.ask("get", self._target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote.ask("set", self._target, name, value)

    def __bool__(self) -> bool:
        return self._remote.ask("truth", self._target) is True

    def __repr__(self) -> str:
        return f"<a {self._kind[:80]} of the program>"


def _sent(value: Any) -> Any:
    if isinstance(value, Remote):
        return value._target
    raise TypeError(f"a test cannot pass a {type(value).__name__} to a program in another process")


def _replace(argument: Any, new: Any) -> None:
    """Give a mutable argument the contents that the program left in it."""
    if type(argument) is not type(new):
        raise calls.Gone("a changed argument is of another type")
    if type(argument) in (list, bytearray):
        argument[:] = new
    elif type(argument) in (dict, set):
        argument.clear()
        argument.update(new)


def _raised(names: list[Any], text: str) -> Exception:
    """An exception like the one that the program raised: of the nearest builtin class."""
    kinds = [getattr(builtins, name, None) for name in names if type(name) is str]
    kind = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)), Exception)
    if issubclass(kind, _ENDS_LOOPS):
        kind = RuntimeError
    try:
        error = kind(text)
    except TypeError:  # such as UnicodeDecodeError, which takes five arguments
        error = Exception(text)
    # The ignore: it must be of the builtin class itself, which declares no such attribute.
    error.program_said = f"{names[0]}: {text}"[:300] if names else text[:300]  # type: ignore[attr-defined]
    return error
