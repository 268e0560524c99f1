"""The programs that `judge.py` grades: HumanEval's canonical solutions and one wrong mutant of each.

Each comes with two kinds of tests: HumanEval's own `check(candidate)`, and the calls that `check` makes, recorded while
the canonical solution answers them.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import io
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from judge_peers import MEMORY_MB

from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.tasks.task import CheckTests, FunctionTests
from ra3gym.verify import Judge, Limits, Status, Verdict

KINDS = ("function", "assert")
FLOAT_TOLERANCE = 1e-6
TOLERANCES = {"find_zero": 1e-4}  # the tolerance of HumanEval's check
MUTANTS_TRIED = 12
SELECTION_SECONDS = 1.0


@dataclass(frozen=True)
class Program:
    """One program and its problem.

    Attributes:
        source: the program.
        passes: whether it should pass.
        check: the problem with assert-style tests.
        function: the problem with function tests.
        operator: the mutation that made it wrong.
    """

    source: str
    passes: bool
    check: CodeTask
    function: CodeTask
    operator: str = ""

    def posed(self, kind: str) -> tuple[CodeTask, str]:
        """Return what the judge grades, for one of `KINDS` of tests."""
        return {"function": self.function, "assert": self.check}[kind], self.source

    def for_peers(self) -> dict[str, Any]:
        """Return the program in the form that a peer's process reads."""
        check, calls = self.check.tests, self.function.tests
        assert isinstance(check, CheckTests)
        assert isinstance(calls, FunctionTests)
        return {
            "task_id": self.check.task_id,
            "source": self.source,
            "entry_point": self.check.entry_point,
            "test": check.code,
            "calls": repr((calls.inputs, calls.outputs)),  # JSON has no tuples
            "tolerance": calls.float_tolerance,
        }


def load_programs(data: Path | None, limit: int | None, seed: int) -> list[Program]:
    """Return the canonical solutions and one wrong mutant of each that has one, shuffled.

    Args:
        data: folder with `humaneval/`; the default is the one in RA3GYM_DATA.
        limit: use only this number of problems.
        seed: of the mutants and the order.
    """
    right = []
    for task in load_tasks("humaneval", path=data, limit=limit):
        function = replace(task, tests=recorded_calls(task, seed))
        right.append(Program(task.canonical_program, True, task, function))
    programs = [*right, *wrong_programs(right, seed)]
    random.Random(seed).shuffle(programs)
    return programs


def describe(programs: Sequence[Program]) -> dict[str, Any]:
    """Return the numbers of programs of each kind, and a digest of all programs in order."""
    digest = hashlib.sha256(json.dumps([program.source for program in programs]).encode())
    right = [program for program in programs if program.passes]
    return {
        "right": len(right),
        "wrong": len(programs) - len(right),
        "mutations": dict(sorted(Counter(program.operator for program in programs if program.operator).items())),
        "calls": sum(len(program.function.tests) for program in right),
        "sha256": digest.hexdigest(),
    }


# --- Function tests ---------------------------------------------------------------------------------------------------


def recorded_calls(task: CodeTask, seed: int) -> FunctionTests:
    """Record the calls that a task's `check` makes to its canonical solution, with their results.

    Runs the benchmark's code in this process. Raises `ValueError` when a value cannot be written as a literal.
    """
    assert isinstance(task.tests, CheckTests)
    namespace: dict[str, Any] = {}
    exec(task.canonical_program + "\n" + task.tests.code, namespace)
    function, inputs, outputs = namespace[task.entry_point], [], []

    def candidate(*arguments: Any) -> Any:
        inputs.append(copy.deepcopy(arguments))
        value = function(*arguments)
        outputs.append(copy.deepcopy(value))
        return value

    random.seed(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        namespace["check"](candidate)
    if ast.literal_eval(repr((inputs, outputs))) != (inputs, outputs):
        raise ValueError(f"the calls of {task.task_id} are not literals")
    tolerance = TOLERANCES.get(task.entry_point, FLOAT_TOLERANCE if _holds_float(outputs) else 0.0)
    return FunctionTests(tuple(inputs), tuple(outputs), tolerance)


def _holds_float(value: Any) -> bool:
    if isinstance(value, list | tuple | set):
        return any(map(_holds_float, value))
    return isinstance(value, float)


# --- Mutants ----------------------------------------------------------------------------------------------------------

_COMPARISONS: dict[type, type] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
Edit = tuple[str, Callable[[], None]]


def edits(node: ast.AST) -> Iterator[Edit]:
    """Yield the names of the mutations that a node allows, each with a function that changes the node."""

    def put(owner: ast.AST, field: str, value: Any) -> Callable[[], None]:
        return lambda: setattr(owner, field, value)

    match node:
        case ast.Compare(ops=[operator, *rest]) if type(operator) in _COMPARISONS:
            yield "comparison", put(node, "ops", [_COMPARISONS[type(operator)](), *rest])
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in _ARITHMETIC:
            yield "arithmetic", put(node, "op", _ARITHMETIC[type(operator)]())
        case ast.BoolOp(op=operator):
            yield "and/or", put(node, "op", ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            yield "constant", put(node, "value", value + 1)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield "condition", put(node, "test", ast.UnaryOp(ast.Not(), test))
        case ast.Return(value=ast.expr()):
            yield "return", put(node, "value", ast.Constant(None))
    for field in ("body", "orelse"):
        block = getattr(node, field, None)
        if isinstance(block, list):  # the body of a lambda or of a conditional expression is not a list
            for position, statement in enumerate(block):
                if _may_be_dropped(statement):
                    yield "statement", put(node, field, [*block[:position], ast.Pass(), *block[position + 1 :]])


def _may_be_dropped(statement: ast.stmt) -> bool:
    match statement:
        case ast.Assign() | ast.AugAssign() | ast.Expr(value=ast.Call()):
            return True
    return False


def mutants(source: str, function: str, seed: int) -> Iterator[tuple[str, str]]:
    """Yield each program with one mutation of `function` in `source`, shuffled: (operator, program)."""

    def nodes() -> tuple[ast.Module, list[ast.AST]]:
        tree = ast.parse(source)
        (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
        return tree, list(ast.walk(found))

    sites = [(index, edit) for index, node in enumerate(nodes()[1]) for edit in range(len(list(edits(node))))]
    random.Random(seed).shuffle(sites)
    for index, number in sites:
        tree, found = nodes()
        operator, make = list(edits(found[index]))[number]
        make()
        yield operator, ast.unparse(ast.fix_missing_locations(tree))


def wrong_programs(right: Sequence[Program], seed: int) -> list[Program]:
    """Return for each program one mutant that fails both kinds of tests in time, if a few tries find one."""
    untried = {program.check.task_id: mutants(program.source, program.check.entry_point, seed) for program in right}
    wrong: dict[str, Program] = {}
    with Judge(workers=2, limits=Limits(seconds=SELECTION_SECONDS, memory_mb=MEMORY_MB)) as judge:
        for _ in range(MUTANTS_TRIED):
            tried = [
                replace(program, source=source, passes=False, operator=operator)
                for program in right
                if program.check.task_id not in wrong
                for operator, source in itertools.islice(untried[program.check.task_id], 1)
            ]
            verdicts = [judge.grade(program.posed(kind) for program in tried) for kind in KINDS]
            for program, *both in zip(tried, *verdicts, strict=True):
                if all(map(_failed_in_time, both)):
                    wrong[program.check.task_id] = program
    return list(wrong.values())


def _failed_in_time(verdict: Verdict) -> bool:
    # The status is that of the first test to fail; a later one may still have run out of time.
    return verdict.status in (Status.WRONG_ANSWER, Status.EXCEPTION) and verdict.seconds < SELECTION_SECONDS / 2
