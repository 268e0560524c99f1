"""What the judge asks its workers to run, and what they say about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One process for a program, and one more for `tests` that call it.

    `program` is the JSON that its process reads; `tests` is that of the tests', `exam` a name that equal tests share.
    Once a run of a `job` was out of time, the job's later ones are skipped.
    """

    program: bytes
    job: int
    seconds: float
    memory_mb: int
    stdout_bytes: int
    tests: bytes | None = None
    exam: str = ""


@dataclass(frozen=True)
class Outcome:
    """How one process went.

    `frames` are its reports, each a JSON text, not to be trusted; `finished` whether it came to its end; `ended` what
    ended it otherwise: "exited", "timeout", "memory", "output_limit", "skipped", "broken" (the machine is, and nothing
    ran) or "signal N". `tests` is the outcome of the process that ran the tests, where there was one.
    """

    frames: list[str]
    finished: bool
    ended: str
    stdout: str
    seconds: float
    tests: Outcome | None = None
