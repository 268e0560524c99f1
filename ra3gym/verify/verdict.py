"""What the judge says about a program (`Verdict`), and the limits it runs under (`Limits`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ra3gym.errors import ConfigError


class Status(StrEnum):
    """How a program fared: `PASSED`, or the way in which its first failing test failed."""

    PASSED = "passed"
    WRONG_ANSWER = "wrong_answer"
    EXCEPTION = "exception"
    SYNTAX_ERROR = "syntax_error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASH = "crash"
    EXITED_EARLY = "exited_early"
    OUTPUT_LIMIT = "output_limit"


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use; `ConfigError` when a limit is not positive.

    `seconds` bounds the wall clock (and, rounded up to whole seconds, the CPU time) of one run: all the
    tests of a function share a run, every stdin/stdout test has its own. `memory_mb` bounds the address
    space, the interpreter's own 20 MB or so included. `output_kb` bounds what is printed; stdin/stdout tests
    may print as much again as is expected of them.

    The defaults suit unit tests of a few calls. EvalPlus' tests hold a thousand inputs a task, some of them heavy:
    their references need `Limits(seconds=60, memory_mb=4096)`.
    """

    seconds: float = 4.0
    memory_mb: int = 1024
    output_kb: int = 64

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_mb", "output_kb"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Limits.{name} must be positive, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Verdict:
    """The judge's answer on one program.

    `score` is the fraction of `tests` passed; `message` tells of the first failure (empty when all passed);
    `seconds` is the wall-clock time of the runs; `stdout` is what the program printed, up to the limit; `isolation` is
    how it was kept from doing harm, see `Judge`.
    """

    status: Status
    tests: tuple[bool, ...]
    message: str = ""
    seconds: float = 0.0
    stdout: str = ""
    isolation: str = "namespaces"

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status is Status.PASSED

    @property
    def score(self) -> float:
        """The fraction of tests passed, in [0, 1]."""
        return sum(self.tests) / len(self.tests)
