"""Statement kinds as an E-step: latents that a parser sees. They say what lines look like, not what they are for."""

from __future__ import annotations

import ast
import time
import warnings
from collections.abc import Sequence

import numpy as np

from ra3gym.abstractions.latents.annotations import Annotations, names_by_company
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import DataError
from ra3gym.tasks import ExpertTrace

STATEMENT_KINDS = (
    *("FunctionDef", "AsyncFunctionDef", "ClassDef", "Return", "Delete", "Assign", "TypeAlias", "AugAssign"),
    *("AnnAssign", "For", "AsyncFor", "While", "If", "With", "AsyncWith", "Match", "Raise", "Try", "TryStar"),
    *("Assert", "Import", "ImportFrom", "Global", "Nonlocal", "Expr", "Pass", "Break", "Continue", "Other"),
)
"""Latents of `AstEStep`, by number: classes of `ast`, the same under every version of Python, and "Other"."""

_OTHER = len(STATEMENT_KINDS) - 1


class AstEStep:
    """Infers statement kinds: a segment is the lines of one statement, its latent the statement's class in `ast`.

    A line belongs to the innermost statement around it: the body of a loop has segments of its own, and an `else`
    returns to the segment kind of its `if`. Blank lines and comments belong to the previous line's statement.
    """

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; `rng` is not read.

        Metrics: `unparsed` (share of the traces that are not valid Python; each is one segment under the latent
        "Other") and `seconds`.
        """
        started = time.perf_counter()
        if not traces:
            raise DataError("there are no traces to infer latents over: the E-step needs at least one expert trace")
        found = [_statement_path(trace) for trace in traces]
        paths = [
            path or LatentPath((_OTHER,) * len(trace.steps), (True, *(False,) * (len(trace.steps) - 1)))
            for path, trace in zip(found, traces, strict=True)
        ]
        return Annotations(
            paths=tuple(paths),
            names=names_by_company(traces, paths, len(STATEMENT_KINDS)),
            metrics={"unparsed": found.count(None) / len(found), "seconds": time.perf_counter() - started},
        )


def _statement_path(trace: ExpertTrace) -> LatentPath | None:
    """Return the path of a trace by the statements of its steps; `None` when the program does not parse."""
    if not trace.steps:
        raise DataError(f"trace {trace.task.task_id!r} has no lines; drop it before the E-step")
    owners = _statements_by_line(trace.prompt + "".join(trace.steps))
    if owners is None:
        return None
    latents: list[int] = []
    switches: list[bool] = []
    current: ast.stmt | None = None
    number = 1 + trace.prompt.count("\n")
    for step in trace.steps:
        text = step.strip()
        silent = not text or text.startswith("#")
        statement = current if silent else owners.get(number, current)
        switches.append(not latents or statement is not current)
        latents.append(_OTHER if statement is None else _kind(statement))
        current = statement
        number += step.count("\n")
    return LatentPath(tuple(latents), tuple(switches))


def _statements_by_line(program: str) -> dict[int, ast.stmt] | None:
    """Return the innermost statement around each line, counted from 1; `None` when the program does not parse.

    Of several statements that begin on one line, it is the first and outermost.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as those about invalid escapes
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    owners: dict[int, ast.stmt] = {}
    for node in ast.walk(tree):  # breadth first: inner statements come later
        if not isinstance(node, ast.stmt):
            continue
        first = _first_line(node)
        if first in owners and first in (owners[first].lineno, _first_line(owners[first])):
            first += 1
        owners |= dict.fromkeys(range(first, (node.end_lineno or node.lineno) + 1), node)
    return owners


def _first_line(statement: ast.stmt) -> int:
    """Return the line on which a statement begins, its decorators included."""
    return min([statement.lineno, *(int(mark.lineno) for mark in getattr(statement, "decorator_list", []))])


def _kind(statement: ast.stmt) -> int:
    name = type(statement).__name__
    return STATEMENT_KINDS.index(name) if name in STATEMENT_KINDS else _OTHER
