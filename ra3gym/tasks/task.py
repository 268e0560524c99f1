"""Problems (`CodeTask`) with their hidden tests, and demonstrations (`ExpertTrace`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

ValueEquality = Literal["strict", "json"]
TextEquality = Literal["words", "numbers"]


@dataclass(frozen=True)
class FunctionTests:
    """Call `entry_point(*inputs[i])` and compare the value with `outputs[i]`.

    Attributes:
        inputs: the arguments of each call.
        outputs: the expected value of each call.
        float_tolerance: absolute and relative; 0 compares exactly.
        equality: "strict" compares types as well, at any depth. "json" compares as Python does between values that came
            from JSON: 1, 1.0 and True are equal. A tuple that is returned then counts as a list.
    """

    inputs: tuple[tuple[Any, ...], ...]
    outputs: tuple[Any, ...]
    float_tolerance: float = 0.0
    equality: ValueEquality = "strict"

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class CheckTests:
    """Tests in HumanEval's form: `code` defines `check(candidate)`, which raises for a wrong candidate."""

    code: str

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class AssertTests:
    """Tests in MBPP's form: `setup` runs first, then each statement of `asserts` is one test."""

    asserts: tuple[str, ...]
    setup: str = ""

    def __len__(self) -> int:
        return len(self.asserts)


@dataclass(frozen=True)
class StdioTests:
    """Run the whole program with `inputs[i]` on stdin; compare what is on stdout with `outputs[i]`.

    Attributes:
        inputs: the text on stdin of each run.
        outputs: the expected text on stdout of each run.
        checker: for problems with several right answers: `checker(input, expected output, program's output)` returns
            whether the output is right. It runs in the trainer and must not trust the program's output.
        equality: without a checker. "words" compares the words, wherever the lines end. "numbers" compares the lines;
            two lines of numbers are equal if the numbers are (2.0 and 2).
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    checker: Callable[[str, str, str], bool] | None = None
    equality: TextEquality = "words"

    def __len__(self) -> int:
        return len(self.inputs)


Tests = FunctionTests | CheckTests | AssertTests | StdioTests

NO_TESTS = FunctionTests((), ())
"""Of a task that is only the problem of a trace: the judge refuses to grade it."""


@dataclass(frozen=True)
class CodeTask:
    """A problem: a prompt, an entry point and hidden tests. A solution is a whole program: `prompt + completion`.

    Attributes:
        task_id: different for each task of a set.
        prompt: the beginning of the program.
        entry_point: the function that the tests call; `Class.method` is allowed. Empty for a program that reads stdin.
        tests: hidden from the model. A task for traces alone, as mid-training reads them, needs none.
        canonical_solution: the completion of the reference solution, `None` if there is none.
        source: the data set that the task is from.
        license: of the data set.
        preamble: code that runs before each program, in its namespace, as the benchmark's grader has it (imports).
        seconds: CPU time that the data set gives a program for each test; `None` leaves it to the judge, whose limit is
            for all tests of a function together, and for each test of a program that reads stdin.
        memory_mb: address space that the data set gives a program; `None` leaves it to the judge.
    """

    task_id: str
    prompt: str
    entry_point: str = ""
    tests: Tests = NO_TESTS
    canonical_solution: str | None = None
    source: str = ""
    license: str = ""
    preamble: str = ""
    seconds: float | None = None
    memory_mb: int | None = None

    @property
    def canonical_program(self) -> str:
        """The reference solution as a whole program; `ValueError` when there is none."""
        if self.canonical_solution is None:
            raise ValueError(f"task {self.task_id!r} has no canonical solution")
        return self.prompt + self.canonical_solution


@dataclass(frozen=True)
class ExpertTrace:
    """A demonstration: an expert solution cut into steps. `prompt + "".join(steps)` is the whole program.

    Attributes:
        task: the problem that it solves.
        steps: lines of Python with their line breaks.
        planted: the true label of each step, if the domain knows it. Only oracles and measurements of agreement may
            read it. Whatever learns gets `without_planted()`.
    """

    task: CodeTask
    steps: tuple[str, ...]
    planted: tuple[int, ...] | None = None

    @property
    def prompt(self) -> str:
        """The text before the first step."""
        return self.task.prompt

    def without_planted(self) -> ExpertTrace:
        """Return the trace without its true labels, for everything that learns."""
        return replace(self, planted=None)
