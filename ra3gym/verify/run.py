"""What the judge has its workers run (`Run`), under which limits (`Limits`), and how a process ended (`Outcome`)."""

from __future__ import annotations

from dataclasses import dataclass

from ra3gym.errors import ConfigError

_WALL_FACTOR = 10.0
_LEAST_WALL = 30.0


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use; `ConfigError` when a limit is not positive.

    All tests of a function share one run; each stdin/stdout test has a run of its own. The defaults suit unit tests of
    a few calls. EvalPlus' tests have up to a thousand inputs for a task, some of them heavy: their references need
    `Limits(seconds=60, memory_mb=4096)`.

    Attributes:
        seconds: CPU time, of all threads together. Other work on the machine does not change what a program may do.
        memory_mb: address space; the interpreter itself takes about 20 MB of it.
        output_kb: printed output; stdin/stdout tests may print the length of the expected output in addition.
        wall_seconds: wall-clock time, which ends programs that wait without computing. `None` means ten times
            `seconds`, and at least 30 s, so that it never strikes a program that computes on a busy machine.
    """

    seconds: float = 4.0
    memory_mb: int = 1024
    output_kb: int = 64
    wall_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_mb", "output_kb", "wall_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"Limits.{name} must be positive, got {value!r}")

    @property
    def wall(self) -> float:
        """The wall-clock limit in seconds."""
        return max(_LEAST_WALL, _WALL_FACTOR * self.seconds) if self.wall_seconds is None else self.wall_seconds


@dataclass(frozen=True)
class Run:
    """One process for a program, and one more for tests that call the program.

    Attributes:
        program: the JSON that the program's process reads.
        submission: the index of the submitted program in its batch. After a timeout its other runs are skipped.
        limits: what the run may use.
        budgets: how often the run may use the seconds of its limits: once, or once for each test if the limits are
            those of one test. A test's report begins the next budget.
        stdout_bytes: output that is kept; more ends the run.
        tests: the JSON that the tests' process reads, `None` without such a process.
        tests_digest: the same for equal tests, which are compiled once.
    """

    program: bytes
    submission: int
    limits: Limits
    stdout_bytes: int
    budgets: int = 1
    tests: bytes | None = None
    tests_digest: str = ""


@dataclass(frozen=True)
class Outcome:
    """How one process ended.

    Attributes:
        reports: what the process reported, one JSON text each. The program may have forged them.
        finished: whether the process reached the end of its work.
        ended: "exited", "cpu_limit", "wall_limit", "memory", "output_limit", "skipped", "signal N", or "broken" when
            the machine could not run the program.
        stdout: what the process printed.
        seconds: wall-clock time of the process.
        cpu_seconds: CPU time of the process; 0 where the system has no clock for it.
        exit_code: of a process that exited; `None` if it is not known.
        tests: the outcome of the tests' process, if there was one.
    """

    reports: list[str]
    finished: bool
    ended: str
    stdout: str
    seconds: float
    cpu_seconds: float = 0.0
    exit_code: int | None = None
    tests: Outcome | None = None
