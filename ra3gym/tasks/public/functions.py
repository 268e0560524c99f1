"""Benchmarks that ask for a function: HumanEval, MBPP, their EvalPlus versions, AceCode, and a user's own problems.

Each converter takes a `Record` in the benchmark's own format and returns a task, or raises `DataError`.
"""

from __future__ import annotations

import ast
import builtins
import warnings

from ra3gym.errors import DataError
from ra3gym.tasks.public.evalplus import split_at_loop, with_evalplus_rules
from ra3gym.tasks.public.prompts import docstring
from ra3gym.tasks.records import Record
from ra3gym.tasks.task import AssertTests, CheckTests, CodeTask, FunctionTests, StdioTests


def humaneval(record: Record) -> CodeTask:
    """Convert HumanEval's `task_id, prompt, entry_point, test, canonical_solution`."""
    test = record.text("test")
    if "def check(" not in test:
        raise record.wrong("test", "must define check(candidate)")
    return CodeTask(
        task_id=_task_id(record, "HumanEval"),
        prompt=record.text("prompt"),
        entry_point=_identifier(record, "entry_point"),
        tests=CheckTests(with_evalplus_rules(test)),
        canonical_solution=record.text("canonical_solution", "") or None,
    )


def mbpp(record: Record) -> CodeTask:
    """Convert MBPP's `text` or `prompt`, `code`, `test_list` and their setup, full or sanitized.

    The prompt is that of the MBPP paper, the text and all asserts, as a docstring at the beginning of the program.
    """
    tests = _statements(record, "test_list")
    code, entry_point = _mbpp_code(record, tests)
    setup = "\n".join([*record.texts("test_imports", []), record.text("test_setup_code", "")])
    return CodeTask(
        task_id=_task_id(record, "Mbpp"),
        prompt=docstring(record.text("text" if "text" in record else "prompt"), *tests),
        entry_point=entry_point,
        tests=AssertTests(tests, setup.replace("\r\n", "\n").strip()),
        canonical_solution=code,
    )


def mbpp_plus(record: Record) -> CodeTask:
    """Convert MBPP+, which has one `test` with many inputs; the prompt shows the first assert, as in EvalPlus."""
    examples = _statements(record, "test_list")
    code, entry_point = _mbpp_code(record, examples)
    test = "\n".join([*record.texts("test_imports", []), record.text("test")])
    definitions, loop = split_at_loop(with_evalplus_rules(test, entry_point))
    return CodeTask(
        task_id=_task_id(record, "Mbpp"),
        prompt=docstring(record.text("prompt"), examples[0]),
        entry_point=entry_point,
        tests=AssertTests((loop,), definitions) if loop else AssertTests((definitions,)),
        canonical_solution=code,
    )


def acecode(record: Record) -> CodeTask:
    """Convert AceCode's `id, question, test_cases`, which are asserts; it has no reference solutions."""
    tests = _statements(record, "test_cases")
    called = [name for name in _called(tests[0]) if not hasattr(builtins, name)]
    if not called:
        raise record.wrong("test_cases", f"the first assert calls no function: {tests[0][:80]!r}")
    return CodeTask(
        task_id=_task_id(record, "AceCode", "id"),
        prompt=docstring(record.text("question")),
        entry_point=called[0],
        tests=AssertTests(tests),
    )


def own(record: Record) -> CodeTask:
    """Convert a user's problem with the fields of HumanEval, of MBPP, or `prompt, entry_point, inputs, outputs`.

    Without `entry_point`, `inputs` and `outputs` are texts on stdin and stdout.
    """
    if "test" in record:
        return humaneval(record)
    if "test_list" in record:
        return mbpp(record)
    if "inputs" in record:
        return _function_tests(record) if "entry_point" in record else _stdin_tests(record)
    raise DataError(
        f"{record.place}: no tests: give 'test' (with 'prompt', 'entry_point'), 'test_list' (with 'text', 'code') or "
        f"'inputs' and 'outputs' (with 'prompt', and 'entry_point' unless the program reads stdin); the record has "
        f"{', '.join(record.fields)}"
    )


def _function_tests(record: Record) -> CodeTask:
    inputs, outputs = record.items("inputs"), record.items("outputs")
    for position, arguments in enumerate(inputs):
        if not isinstance(arguments, list):
            raise record.wrong("inputs", f"item {position} must be the list of arguments of one call")
    if not inputs:
        raise record.wrong("inputs", "is empty: a task needs at least one test")
    if len(inputs) != len(outputs):
        raise record.wrong("outputs", f"has {len(outputs)} items for {len(inputs)} inputs")
    tolerance = record.fields.get("float_tolerance") or 0.0
    if not isinstance(tolerance, int | float) or tolerance < 0:
        raise record.wrong("float_tolerance", f"must be a number of at least 0, got {tolerance!r}")
    return CodeTask(
        task_id=_task_id(record, "own"),
        prompt=record.text("prompt"),
        entry_point=_identifier(record, "entry_point"),
        tests=FunctionTests(tuple(tuple(arguments) for arguments in inputs), tuple(outputs), float(tolerance)),
        canonical_solution=record.text("canonical_solution", "") or None,
    )


def _stdin_tests(record: Record) -> CodeTask:
    for position, text in enumerate(record.items("inputs")):
        if not isinstance(text, str):
            raise record.wrong(
                "inputs", f"item {position} must be the text on stdin, or give 'entry_point', the function to call"
            )
    inputs, outputs = record.texts("inputs"), record.texts("outputs")
    if not inputs:
        raise record.wrong("inputs", "is empty: a task needs at least one test")
    if len(inputs) != len(outputs):
        raise record.wrong("outputs", f"has {len(outputs)} items for {len(inputs)} inputs")
    return CodeTask(
        task_id=_task_id(record, "own"),
        prompt=record.text("prompt"),
        tests=StdioTests(tuple(inputs), tuple(outputs)),
        canonical_solution=record.text("canonical_solution", "") or None,
    )


def _task_id(record: Record, family: str, field: str = "task_id") -> str:
    value = record.fields.get(field)
    if value is None:
        return f"{family}/{record.place.rsplit(' ', 1)[-1]}"
    return value if isinstance(value, str) else f"{family}/{value}"


def _identifier(record: Record, name: str) -> str:
    value = record.text(name)
    if not value.isidentifier():
        raise record.wrong(name, f"must be a Python name, got {value!r}")
    return value


def _statements(record: Record, name: str) -> tuple[str, ...]:
    statements = tuple(text.replace("\r\n", "\n") for text in record.texts(name))
    if not statements:
        raise record.wrong(name, "is empty: a task needs at least one test")
    return statements


def _mbpp_code(record: Record, tests: tuple[str, ...]) -> tuple[str, str]:
    """Return the reference program and its function that the tests call."""
    code = record.text("code").replace("\r\n", "\n")
    try:
        tree = _parsed(code)
    except SyntaxError as error:
        raise record.wrong("code", f"is not Python: {error}") from None
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    called = [name for name in _called(tests[0]) if name in defined]
    if not called:
        raise record.wrong("test_list", f"the first test calls none of the functions of 'code': {', '.join(defined)}")
    return code, called[0]


def _parsed(source: str) -> ast.Module:
    with warnings.catch_warnings():  # some benchmarks have "\\d" in plain strings
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _called(statement: str) -> list[str]:
    """Return the names that a statement calls, inner calls last; an empty list when it is not Python."""
    try:
        nodes = ast.walk(_parsed(statement))
    except SyntaxError:
        return []
    return [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
