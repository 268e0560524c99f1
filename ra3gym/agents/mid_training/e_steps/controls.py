"""Controls as E-steps: latents that RA3's should beat, each missing one thing that RA3's have.

- `PauseEStep`, `RandomEStep`, `ShuffledEStep` take the segments of another E-step and spoil what the latents say.
- `MacroEStep` and `AstEStep` need no learning of latents: macro-actions are frequent runs of lines, found as byte-pair
  encoding finds words (Gage 1994; Sennrich et al. 2016, arXiv 1508.07909), and statement kinds are what a parser sees.
  Their latents say what lines look like, not what they are for.
"""

from __future__ import annotations

import ast
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.latents.annotations import Annotations, names_by_company, random_latents, shuffled
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError, DataError
from ra3gym.tasks import ExpertTrace

if TYPE_CHECKING:
    from ra3gym.agents.mid_training.e_steps.registry import EStep

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PauseEStep:
    """The segments of `segments`, all under one latent without a name: as many extra tokens, and no meaning."""

    segments: EStep

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; metrics are those of `segments`."""
        found = self.segments.infer(traces, rng)
        paths = tuple(LatentPath((0,) * len(path.latents), path.switches) for path in found.paths)
        return Annotations(paths=paths, names=((),), metrics=found.metrics)


@dataclass(frozen=True)
class RandomEStep:
    """The segments of `segments`, each under a latent drawn uniformly."""

    segments: EStep

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; metrics and names are those of `segments`."""
        return random_latents(self.segments.infer(traces, rng), rng)


@dataclass(frozen=True)
class ShuffledEStep:
    """The segments of `segments`, their latents permuted over the corpus: usage is kept, meaning is not."""

    segments: EStep

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; metrics and names are those of `segments`."""
        return shuffled(self.segments.infer(traces, rng), rng)


@dataclass(frozen=True)
class MacroEStep:
    """Macro-actions: a segment is an instance of a frequent run of lines, its latent says which run.

    Starting from one macro per line type, the two neighbours that stand side by side most often become one macro,
    again and again. Latents number the macros by how often they occur; the rarest share the last latent.

    Attributes:
        num_latents: K, at least 2.
        merges: how often two neighbours become one, 0 to a few hundred: more merges, longer segments.
        min_count: a pair that occurs less often is not merged: no macro is one program learned by heart.
    """

    num_latents: int = 48
    merges: int = 64
    min_count: int = 5

    def __post_init__(self) -> None:
        if self.num_latents < 2:
            raise ConfigError(f"num_latents={self.num_latents}: give at least 2, the last is for what is rare")
        if self.merges < 0 or self.min_count < 1:
            raise ConfigError(f"merges={self.merges}, min_count={self.min_count}: give at least 0 and 1")

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; `rng` is not read. Metrics: `macros` (distinct ones), `shared` (the share of segments
        under the last latent, when several macros share it) and `seconds`."""
        started = time.perf_counter()
        corpus = encode_traces(traces)
        macro_S, length_S = merge_neighbours(corpus.line_N, corpus.offsets, self.merges, self.min_count)
        macros, macro_S, count_U = np.unique(macro_S, return_inverse=True, return_counts=True)
        rank_U = np.empty(len(macros), dtype=np.int64)
        rank_U[np.argsort(-count_U, kind="stable")] = np.arange(len(macros))
        latent_S = np.minimum(rank_U, self.num_latents - 1)[macro_S]
        latent_N = np.repeat(latent_S, length_S)
        switch_N = np.zeros(len(latent_N), dtype=bool)
        switch_N[np.cumsum(length_S) - length_S] = True
        paths = [
            LatentPath(tuple(latent_N[a:b].tolist()), tuple(switch_N[a:b].tolist()))
            for a, b in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)
        ]
        crowded = len(macros) > self.num_latents
        return Annotations(
            paths=tuple(paths),
            names=names_by_company(traces, paths, self.num_latents),
            metrics={
                "macros": float(len(macros)),
                "shared": float((latent_S == self.num_latents - 1).mean()) if crowded else 0.0,
                "seconds": time.perf_counter() - started,
            },
        )


def merge_neighbours(line_N: IntArray, offsets: IntArray, merges: int, min_count: int) -> tuple[IntArray, IntArray]:
    """Byte-pair encoding over line types: `(macro of each segment, its number of lines)`, both of shape (S,).

    Macros below `max(line_N) + 1` are single line types; each merge adds one. No segment reaches over the end of a
    trace. In a run of equal lines, pairs are counted as they would be merged: from the left, without overlap. Among
    pairs that are equally frequent, the one with the smallest numbers is merged.
    """
    macro_S, length_S = line_N.astype(np.int64), np.ones(len(line_N), dtype=np.int64)
    last_S = np.zeros(len(line_N), dtype=bool)
    last_S[offsets[1:] - 1] = True
    fresh = int(line_N.max()) + 1
    for macro in range(fresh, fresh + merges):
        paired_S = _pairs(macro_S, last_S)
        left, right = macro_S[paired_S], macro_S[np.flatnonzero(paired_S) + 1]
        pairs, count = np.unique(left * macro + right, return_counts=True)
        if not len(pairs) or count.max() < min_count:
            break
        first, second = divmod(int(pairs[count.argmax()]), macro)
        (heads,) = np.nonzero(paired_S)
        heads = heads[(left == first) & (right == second)]
        macro_S[heads] = macro
        length_S[heads] += length_S[heads + 1]
        last_S[heads] = last_S[heads + 1]
        macro_S, length_S, last_S = (np.delete(array, heads + 1) for array in (macro_S, length_S, last_S))
    return macro_S, length_S


def _pairs(macro_S: IntArray, last_S: BoolArray) -> BoolArray:
    """Where a pair of neighbours may start: in the same trace, and in a run of equals at every other place."""
    followed_S = ~last_S
    equal_S = np.zeros(len(macro_S), dtype=bool)
    equal_S[:-1] = (macro_S[:-1] == macro_S[1:]) & followed_S[:-1]
    place = np.arange(len(macro_S))
    starts_S = ~np.concatenate([[False], equal_S[:-1]])
    run_start_S = np.maximum.accumulate(np.where(starts_S, place, 0))
    return np.asarray(followed_S & ~(equal_S & ((place - run_start_S) % 2 == 1)))


STATEMENT_KINDS = (
    *("FunctionDef", "AsyncFunctionDef", "ClassDef", "Return", "Delete", "Assign", "TypeAlias", "AugAssign"),
    *("AnnAssign", "For", "AsyncFor", "While", "If", "With", "AsyncWith", "Match", "Raise", "Try", "TryStar"),
    *("Assert", "Import", "ImportFrom", "Global", "Nonlocal", "Expr", "Pass", "Break", "Continue", "Other"),
)
"""Latents of `AstEStep`, by number: classes of `ast`, the same under every version of Python, and all that is none."""

_OTHER = len(STATEMENT_KINDS) - 1


class AstEStep:
    """Statement kinds: a segment is the lines of one statement (the headers and ends of a compound one), its latent
    the statement's class in `ast`.

    A line belongs to the innermost statement around it, so that the body of a loop has segments of its own and an
    `else` goes back to its `if`. Blank lines and comments stay with the line before.
    """

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; `rng` is not read. Metrics: `unparsed` (share of traces that are no valid Python, each
        one segment under the latent `Other`) and `seconds`."""
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
    """One latent per step by the statement it belongs to; `None` when the program does not parse."""
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
    """The innermost statement around each line, from 1; of several that begin on one line, the first and outermost."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes, say
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    owners: dict[int, ast.stmt] = {}
    for node in ast.walk(tree):  # breadth first: what is inside comes later
        if not isinstance(node, ast.stmt):
            continue
        first = _first_line(node)
        if first in owners and first in (owners[first].lineno, _first_line(owners[first])):
            first += 1
        owners |= dict.fromkeys(range(first, (node.end_lineno or node.lineno) + 1), node)
    return owners


def _first_line(statement: ast.stmt) -> int:
    """Where a statement begins, its decorators included."""
    return min([statement.lineno, *(int(mark.lineno) for mark in getattr(statement, "decorator_list", []))])


def _kind(statement: ast.stmt) -> int:
    name = type(statement).__name__
    return STATEMENT_KINDS.index(name) if name in STATEMENT_KINDS else _OTHER
