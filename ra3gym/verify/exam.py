"""From a task to the runs of a program: `prepare_exam` makes an `Exam`, `Exam.runs` what the workers run."""

from __future__ import annotations

import ast
import builtins
import contextlib
import hashlib
import json
import warnings
from dataclasses import dataclass, replace
from typing import Any

from ra3gym.errors import DataError
from ra3gym.tasks.task import AssertTests, CheckTests, CodeTask, FunctionTests, StdioTests
from ra3gym.verify.run import Limits, Run
from ra3gym.verify.sandbox.encoding import encode, text_of

_STDOUT_STEP = 1 << 16
_LONGEST_CODE = 1000
"""Most characters of a string in a test that is searched for code."""


@dataclass(frozen=True)
class Exam:
    """A task prepared for judging.

    Attributes:
        task: where it is from.
        limits: what each run of a program may use, the task's own limits included.
        budgets: see `Run.budgets`.
        jobs: for each run what the program's process reads, except the source.
        tests: what the tests' process reads, for tests that are code.
        expected: the expected outputs, for tests that are values: encoded as trees, or what stdout should hold.
        stdout_bytes: output of a program that is kept.
        digest: of everything that decides a verdict, so that equal tasks share their verdicts.
    """

    task: CodeTask
    limits: Limits
    budgets: int
    jobs: tuple[dict[str, Any], ...]
    tests: bytes | None
    expected: tuple[Any, ...]
    stdout_bytes: int
    digest: str

    def runs(self, source: str, submission: int) -> list[Run]:
        """Return the runs of a program; `submission` is its index in the batch."""
        return [
            Run(
                program=json.dumps(job | {"source": source}).encode(),
                submission=submission,
                limits=self.limits,
                budgets=self.budgets,
                stdout_bytes=self.stdout_bytes,
                tests=self.tests,
                tests_digest=self.digest,
            )
            for job in self.jobs
        ]


def prepare_exam(task: CodeTask, limits: Limits, stop_early: bool = False) -> Exam:
    """Prepare the exam of `task` under `limits`; `DataError` when it has no tests, or tests that cannot be run."""
    tests = task.tests
    if not len(tests):
        raise DataError(f"task {task.task_id!r} has no tests: the judge cannot grade it")
    if isinstance(tests, FunctionTests | StdioTests) and len(tests.inputs) != len(tests.outputs):
        raise DataError(f"task {task.task_id!r} has {len(tests.inputs)} inputs but {len(tests.outputs)} outputs")
    limits, budgets = _limits(task, limits)
    stdout_bytes = limits.output_kb << 10
    expected: tuple[Any, ...] = ()
    code: dict[str, Any] = {}
    if isinstance(tests, FunctionTests):
        inputs = [text_of(_encoded(task, list(arguments))) for arguments in tests.inputs]
        expected = tuple(_encoded(task, output) for output in tests.outputs)
        jobs = [{"kind": "function", "entry_point": task.entry_point, "inputs": inputs}]
    elif isinstance(tests, StdioTests):
        jobs = [{"kind": "script", "stdin": text} for text in tests.inputs]
        longest = max(len(output.encode()) for output in tests.outputs)
        stdout_bytes += -(-longest // _STDOUT_STEP) * _STDOUT_STEP  # rounded up: a program could learn the length
        expected = tests.outputs
    else:
        code = _test_code(task, tests) | {"stop_early": stop_early}
        jobs = [{"kind": "calls", "names": code["names"]}]
    if task.preamble:
        _parsed(task, task.preamble)
        jobs = [job | {"preamble": task.preamble} for job in jobs]
    comparison = [repr(getattr(tests, name, None)) for name in ("float_tolerance", "equality", "checker")]
    used = [limits.seconds, limits.wall, limits.memory_mb, budgets]
    decisive = [jobs, code, expected, comparison, used]
    return Exam(
        task=task,
        limits=limits,
        budgets=budgets,
        jobs=tuple(jobs),
        tests=json.dumps(code).encode() if code else None,
        expected=expected,
        stdout_bytes=stdout_bytes,
        digest=hashlib.sha256(json.dumps(decisive).encode()).hexdigest(),
    )


def _limits(task: CodeTask, limits: Limits) -> tuple[Limits, int]:
    """Return what a run of a program may use, and how often it may use the seconds; see `Run.budgets`."""
    if task.memory_mb is not None:
        limits = replace(limits, memory_mb=task.memory_mb)
    if task.seconds is None:
        return limits, 1
    if isinstance(task.tests, FunctionTests):  # each test has a report, and with it a budget
        return replace(limits, seconds=task.seconds), len(task.tests)
    runs = len(task.tests) if isinstance(task.tests, StdioTests) else 1
    return replace(limits, seconds=task.seconds * len(task.tests) / runs), 1


def _encoded(task: CodeTask, value: Any) -> Any:
    def refuse(part: Any) -> Any:
        kind = type(part).__name__
        raise DataError(f"a test of task {task.task_id!r} holds a {kind}, which is not of builtin types: {part!r:.80}")

    return encode(value, refuse)


def _test_code(task: CodeTask, tests: CheckTests | AssertTests) -> dict[str, Any]:
    """Return tests that are code in the form that `sandbox.tests` reads."""
    if isinstance(tests, CheckTests):
        setup, statements = tests.code, ["check(candidate)"]
    else:
        setup, statements = tests.setup, list(tests.asserts)
    trees = [_parsed(task, text) for text in (setup, *statements)]
    context, helpers = _context(task)
    used = set().union(*map(_used, trees))
    # Helpers that the prompt defines come from the prompt: a program could define them so that every test passes.
    names = used - helpers - _defined(trees[0]) - set(dir(builtins)) - {"candidate"} | {task.entry_point}
    return {
        "context": context,
        "setup": setup,
        "statements": statements,
        "names": sorted(names),
        "entry_point": task.entry_point,
    }


def _used(tree: ast.AST) -> set[str]:
    """Return the names that tests use, also in strings that hold code, as those of doctests do."""
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
        with warnings.catch_warnings():  # some benchmarks have "\\d" in plain strings
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
            compile(text, "<tests>", "exec", dont_inherit=True)
            return tree
    except (SyntaxError, ValueError) as error:
        raise DataError(f"a test of task {task.task_id!r} is not Python: {error}") from None


def _context(task: CodeTask) -> tuple[str, set[str]]:
    """Return the prompt as a module, and the names that it defines; an empty one if the prompt is not Python.

    A prompt that ends with the head of a function gets `pass` as its body.
    """
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
    """Return the names that a module defines at its top level."""
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
