"""What a problem is (`CodeTask`) and what a demonstration is (`ExpertTrace`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class FunctionTests:
    """Call `entry_point(*inputs[i])` and compare the value with `outputs[i]`.

    `float_tolerance` is absolute and relative; 0 compares exactly, with strict types.
    """

    inputs: tuple[tuple[Any, ...], ...]
    outputs: tuple[Any, ...]
    float_tolerance: float = 0.0

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class CheckTests:
    """HumanEval's style: `code` defines `check(candidate)`, which raises when the candidate is wrong."""

    code: str

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class AssertTests:
    """MBPP's style: `setup` runs first, then each statement of `asserts` is one test."""

    asserts: tuple[str, ...]
    setup: str = ""

    def __len__(self) -> int:
        return len(self.asserts)


@dataclass(frozen=True)
class StdioTests:
    """Run the whole program with `inputs[i]` on stdin; compare whitespace-normalised stdout with `outputs[i]`.

    Where several answers are right, a `checker(input, expected output, program's output)` says whether this one is. It
    runs in the trainer, on text that is not to be trusted.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    checker: Callable[[str, str, str], bool] | None = None

    def __len__(self) -> int:
        return len(self.inputs)


Tests = FunctionTests | CheckTests | AssertTests | StdioTests


@dataclass(frozen=True)
class CodeTask:
    """A problem: a prompt, an entry point and hidden tests.

    A solution is a whole program; for a completion of the prompt that is `prompt + completion`.
    `canonical_solution` is the completion a reference solution consists of (`None` if the source has none).
    """

    task_id: str
    prompt: str
    entry_point: str
    tests: Tests
    canonical_solution: str | None = None
    source: str = ""
    licence: str = ""

    @property
    def canonical_program(self) -> str:
        """The reference as a whole program; `ValueError` when the source has none."""
        if self.canonical_solution is None:
            raise ValueError(f"task {self.task_id!r} has no canonical solution")
        return self.prompt + self.canonical_solution


@dataclass(frozen=True)
class ExpertTrace:
    """A demonstration: an expert solution cut into steps, one line of Python each (line break included).

    `prompt + "".join(steps)` is the whole program. `planted` holds one true label per step where the domain
    knows them; only the oracle and the measurements of agreement may read it: everything learned gets
    `without_planted()`.
    """

    task: CodeTask
    steps: tuple[str, ...]
    planted: tuple[int, ...] | None = None

    @property
    def prompt(self) -> str:
        """The text ahead of the first step."""
        return self.task.prompt

    def without_planted(self) -> ExpertTrace:
        """The same trace as a learned arm may see it."""
        return replace(self, planted=None)
