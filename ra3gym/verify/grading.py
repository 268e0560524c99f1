"""From a task to the runs that the workers make, and from their outcomes to a verdict. All of it trusted."""

from __future__ import annotations

import ast
import builtins
import contextlib
import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ra3gym.errors import DataError, JudgeError
from ra3gym.tasks.task import AssertTests, CheckTests, CodeTask, FunctionTests, StdioTests
from ra3gym.verify.compare import same, shown
from ra3gym.verify.runs import Outcome, Run
from ra3gym.verify.sandbox.encoding import DecodeError, encode, parse, text_of
from ra3gym.verify.verdict import Limits, Status, Verdict

_STDOUT_STEP = 1 << 16
_MESSAGE_CHARS = 1000
_LONGEST_CODE = 1000
"""Characters of a text in a test that may be code."""

Result = tuple[Status, str]
"""How one test went, and a message when it failed."""


@dataclass(frozen=True)
class Exam:
    """A task made ready for judging: `programs` are what the processes of its runs read but for the source."""

    task: CodeTask
    limits: Limits
    programs: tuple[dict[str, Any], ...]
    tests: bytes | None
    """What runs the tests in another process, for tests that are code."""
    expected: tuple[Any, ...]
    """The expected outputs as trees, for tests that are values."""
    stdout_bytes: int
    digest: str
    """Of everything that decides a verdict, so that equal tasks share their verdicts."""

    def runs(self, source: str, job: int) -> list[Run]:
        """The runs that a program needs."""
        return [
            Run(
                program=json.dumps(program | {"source": source}).encode(),
                job=job,
                seconds=self.limits.seconds,
                memory_mb=self.limits.memory_mb,
                stdout_bytes=self.stdout_bytes,
                tests=self.tests,
                exam=self.digest,
            )
            for program in self.programs
        ]


def prepare(task: CodeTask, limits: Limits, stop_early: bool = False) -> Exam:
    """The exam of `task` under `limits`; `DataError` when the task has no tests or they cannot be posed."""
    tests = task.tests
    if not len(tests):
        raise DataError(f"task {task.task_id!r} has no tests: the judge cannot grade it")
    if isinstance(tests, FunctionTests | StdioTests) and len(tests.inputs) != len(tests.outputs):
        raise DataError(f"task {task.task_id!r} has {len(tests.inputs)} inputs but {len(tests.outputs)} outputs")
    stdout_bytes = limits.output_kb << 10
    expected: tuple[Any, ...] = ()
    code: dict[str, Any] = {}
    if isinstance(tests, FunctionTests):
        inputs = [text_of(_encoded(task, list(arguments))) for arguments in tests.inputs]
        expected = tuple(_encoded(task, output) for output in tests.outputs)
        programs = [{"kind": "function", "entry_point": task.entry_point, "inputs": inputs}]
    elif isinstance(tests, StdioTests):
        programs = [{"kind": "script", "stdin": text} for text in tests.inputs]
        longest = max(len(output.encode()) for output in tests.outputs)
        stdout_bytes += -(-longest // _STDOUT_STEP) * _STDOUT_STEP  # a program may see it, and guess from the length
        expected = tests.outputs
    else:
        code = _test_code(task, tests) | {"stop_early": stop_early}
        programs = [{"kind": "calls", "names": code["names"]}]
    decisive = [programs, code, expected, getattr(tests, "float_tolerance", 0.0), repr(getattr(tests, "checker", None))]
    return Exam(
        task=task,
        limits=limits,
        programs=tuple(programs),
        tests=json.dumps(code).encode() if code else None,
        expected=expected,
        stdout_bytes=stdout_bytes,
        digest=hashlib.sha256(json.dumps(decisive).encode()).hexdigest(),
    )


def _encoded(task: CodeTask, value: Any) -> Any:
    def refuse(part: Any) -> Any:
        kind = type(part).__name__
        raise DataError(f"a test of task {task.task_id!r} holds a {kind}, which is not of builtin types: {part!r:.80}")

    return encode(value, refuse)


def _test_code(task: CodeTask, tests: CheckTests | AssertTests) -> dict[str, Any]:
    """Tests that are code, as `sandbox.tester` reads them."""
    if isinstance(tests, CheckTests):
        setup, statements = tests.code, ["check(candidate)"]
    else:
        setup, statements = tests.setup, list(tests.asserts)
    trees = [_parsed(task, text) for text in (setup, *statements)]
    context, helpers = _context(task)
    used = set().union(*map(_used, trees))
    # A helper that stands in the prompt is taken from there: a program could make it say whatever passes.
    names = used - helpers - _defined(trees[0]) - set(dir(builtins)) - {"candidate"} | {task.entry_point}
    return {
        "context": context,
        "setup": setup,
        "statements": statements,
        "names": sorted(names),
        "entry_point": task.entry_point,
    }


def _used(tree: ast.AST) -> set[str]:
    """The names that tests use, in code that they hold as text too, as doctests do."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < _LONGEST_CODE:
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                names |= {part.id for part in ast.walk(ast.parse(node.value)) if isinstance(part, ast.Name)}
    return names


def _parsed(task: CodeTask, text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():  # the benchmarks' own "\\d" in plain strings
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
            compile(text, "<tests>", "exec", dont_inherit=True)
            return tree
    except (SyntaxError, ValueError) as error:
        raise DataError(f"a test of task {task.task_id!r} is not Python: {error}") from None


def _context(task: CodeTask) -> tuple[str, set[str]]:
    """The prompt, where it is Python as it stands (its last function has a docstring for a body), and its names."""
    try:
        return task.prompt, _defined(_parsed(task, task.prompt))
    except DataError:
        pass
    last = task.prompt.rstrip().rpartition("\n")[2]
    whole = f"{task.prompt.rstrip()}\n{' ' * (len(last) - len(last.lstrip()) + 4)}pass\n"
    try:
        return whole, _defined(_parsed(task, whole))
    except DataError:
        return "", set()


def _defined(tree: ast.Module) -> set[str]:
    """The names that a module's top level defines."""
    names: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {(alias.asname or alias.name).split(".")[0] for alias in aliases}
            case _:
                names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and _is_stored(part)}
    return names


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def verdict(exam: Exam, outcomes: Sequence[Outcome], isolation: str = "namespaces") -> Verdict:
    """What the outcomes of a program's runs are worth; the runs of stdin/stdout tests may have stopped early."""
    number = len(exam.task.tests)
    if isinstance(exam.task.tests, StdioTests):
        results = [_stdio_result(run, exam, index) for index, run in enumerate(outcomes)]
        missing = (Status.WRONG_ANSWER, "not run, an earlier test failed")
        finished = True
    else:
        (run,) = outcomes
        tests = run.tests or run
        frames = [_parsed_frame(frame) for frame in tests.frames[:number]]
        results = [_frame_result(frame, exam, index) for index, frame in enumerate(frames)]
        finished = tests.finished
        missing = _ending(run)
        if run.tests is not None:
            missing = _tests_ending(run, run.tests)
            results = [
                result for frame, result in zip(frames, results, strict=True) if not {"gone", "flood"} & {*frame}
            ]
        if missing[0] is Status.OUTPUT_LIMIT:  # which tests were reported before the flood was noticed is chance
            results = []
    results += [missing] * (number - len(results))
    if not finished and all(status is Status.PASSED for status, _ in results):
        results[-1] = missing  # every test reported, yet the program did not reach the end
    failed = [index for index, (status, _) in enumerate(results) if status is not Status.PASSED]
    status, message = results[failed[0]] if failed else (Status.PASSED, "")
    if failed and number > 1 and status is not Status.SYNTAX_ERROR:
        message = f"test {failed[0]}: {message}"
    return Verdict(
        status=status,
        tests=tuple(result is Status.PASSED for result, _ in results),
        message=message[:_MESSAGE_CHARS].encode("utf-8", "backslashreplace").decode(),
        seconds=sum(run.seconds for run in outcomes),
        stdout="".join(run.stdout for run in outcomes)[: exam.stdout_bytes],
        isolation=isolation,
    )


def _stdio_result(run: Outcome, exam: Exam, index: int) -> Result:
    tests = exam.task.tests
    assert isinstance(tests, StdioTests)
    if run.ended == "skipped":
        return Status.TIMEOUT, "not run, an earlier test ran out of time"
    if not run.finished:
        return _ending(run)
    want = tests.outputs[index]
    if tests.checker is None:
        right = run.stdout.split() == want.split()
    else:
        try:
            right = tests.checker(tests.inputs[index], want, run.stdout)
        except Exception as error:
            raise JudgeError(f"the checker of task {exam.task.task_id!r} raised {error!r} on test {index}") from error
    return (Status.PASSED, "") if right else (Status.WRONG_ANSWER, f"expected {want[:100]!r}, got {run.stdout[:100]!r}")


def _frame_result(frame: dict[str, Any], exam: Exam, index: int) -> Result:
    """What one report on a test is worth."""
    tests = exam.task.tests
    if "value" in frame and isinstance(tests, FunctionTests):
        return _value_result(frame["value"], exam, index)
    if "ok" in frame and isinstance(tests, AssertTests | CheckTests):
        return Status.PASSED, ""
    if "wrong" in frame:
        text = tests.asserts[index] if isinstance(tests, AssertTests) else str(frame["wrong"])
        return Status.WRONG_ANSWER, text or "an assertion failed"
    return _failure(frame)


def _failure(frame: dict[str, Any]) -> Result:
    """What a report is worth that is not on a test's result."""
    if "missing" in frame:
        return Status.EXCEPTION, f"the program defines no {frame['missing']!r}"
    if "syntax" in frame:
        return Status.SYNTAX_ERROR, str(frame["syntax"])
    if "memory" in frame:
        return Status.MEMORY, "MemoryError"
    if "flood" in frame:
        return Status.OUTPUT_LIMIT, "returned too much"
    if "gone" in frame:
        return Status.EXITED_EARLY, str(frame["gone"])
    if "exit" in frame:
        return Status.EXITED_EARLY, "the program called sys.exit before the last test"
    return Status.EXCEPTION, str(frame.get("error", "unreadable report"))


def _value_result(value: Any, exam: Exam, index: int) -> Result:
    tests = exam.task.tests
    assert isinstance(tests, FunctionTests)
    want = exam.expected[index]
    try:
        got = parse(value) if isinstance(value, str) else None
        if same(got, want, tests.float_tolerance):
            return Status.PASSED, ""
        answer = shown(got)
    except DecodeError as error:
        return Status.WRONG_ANSWER, str(error)
    except RecursionError:
        return Status.WRONG_ANSWER, "nested too deeply"
    arguments = ", ".join(f"{argument!r:.120}" for argument in tests.inputs[index])
    return Status.WRONG_ANSWER, f"expected {shown(want)}, got {answer} for ({arguments})"


def _tests_ending(program: Outcome, tests: Outcome) -> Result:
    """Why tests in a process of their own stopped before the last one: by the program's doing, or their own."""
    frames = [_parsed_frame(frame) for frame in tests.frames[-1:]]
    if frames and "gone" in frames[0] and not program.finished:
        return _ending(program)
    return _ending(tests)


def _ending(run: Outcome) -> Result:
    """Why a run stopped before its last test."""
    frames = [_parsed_frame(frame) for frame in run.frames[-1:]]
    if frames and not {"value", "ok"} & frames[0].keys() and run.ended == "exited":
        return _failure(frames[0])
    match run.ended:
        case "timeout":
            return Status.TIMEOUT, "out of time"
        case "memory":
            return Status.MEMORY, "killed by the kernel, out of memory"
        case "output_limit":
            return Status.OUTPUT_LIMIT, "printed or returned too much"
        case "exited" | "":
            return Status.EXITED_EARLY, "the process ended before the last test"
        case signal:
            return Status.CRASH, f"the process died of {signal}"


def _parsed_frame(frame: str) -> dict[str, Any]:
    try:
        value = json.loads(frame)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
