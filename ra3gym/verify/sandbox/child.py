"""What the processes of programs and of tests have in common: their limits, and how they report."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import math
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

STDOUT, REPORTS, CALLS = 1, 3, 4
"""Descriptors of what is printed, of the reports, and of the connection between program and tests."""
READY, DONE = b"ready\n", b"done\n"
"""The first and the last line of complete reports."""
MAX_DESCRIPTORS = 128
"""Most descriptors that the parent has open."""
_MESSAGE_CHARS = 300
_OPEN_FILES = 64
_TASKS = 64


class Descriptors(NamedTuple):
    """The parent's descriptors that become `REPORTS`, `STDOUT` and `CALLS` of a process."""

    reports: int
    stdout: int
    calls: int | None


def read_json(file: int, at: tuple[int, int]) -> dict[str, Any]:
    """Read the JSON object at a position (start and length) of a batch's file."""
    start, length = at
    parts = []
    while length > 0:
        parts.append(os.pread(file, length, start))
        start, length = start + len(parts[-1]), length - len(parts[-1])
    content: dict[str, Any] = json.loads(b"".join(parts))
    return content


def arrange_descriptors(descriptors: Descriptors) -> None:
    """Move the descriptors to their fixed numbers, and close every other one except 0 and 2."""
    moves = [(STDOUT, descriptors.stdout), (REPORTS, descriptors.reports)]
    if descriptors.calls is not None:
        moves.append((CALLS, descriptors.calls))
    for number, descriptor in moves:
        os.dup2(descriptor, MAX_DESCRIPTORS + number)  # first to numbers that none of them has
    for number, _ in moves:
        os.dup2(MAX_DESCRIPTORS + number, number)
    last = moves[-1][0]
    os.closerange(last + 1, 2 * MAX_DESCRIPTORS)


def keep_descriptors(reports: int, others: list[int]) -> list[int]:
    """Move `reports` to its fixed number, close all descriptors but `others`, and return the new numbers of those."""
    moved = [os.dup2(descriptor, MAX_DESCRIPTORS + 2 + i) for i, descriptor in enumerate([reports, *others])]
    os.closerange(REPORTS, MAX_DESCRIPTORS + 2)
    os.dup2(moved[0], REPORTS)
    os.close(moved[0])
    os.closerange(moved[-1] + 1, 2 * MAX_DESCRIPTORS)
    return moved[1:]


def give_stdin(text: str) -> None:
    """Make `text` the standard input of the program."""
    if not text:
        return  # `settle` left it empty
    content = text.encode("utf-8", "replace")
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("stdin")  # not a pipe: programs ask for its size
        os.write(file, content)
        os.lseek(file, 0, os.SEEK_SET)
        os.dup2(file, 0)
        os.close(file)
        raw: io.BufferedIOBase = os.fdopen(0, "rb", closefd=False)
    else:
        raw = io.BytesIO(content)
    sys.stdin = io.TextIOWrapper(raw, encoding="utf-8", errors="replace")


def settle() -> None:
    """Prepare what all programs and tests have in common, once for all processes forked from this one."""
    null, (reader, writer) = os.dup(STDOUT), os.pipe()
    os.dup2(writer, STDOUT)  # so that the stream finds a pipe, as it will in a program
    sys.stdin = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace")
    sys.stdout = os.fdopen(STDOUT, "w", encoding="utf-8", errors="replace", closefd=False)
    os.dup2(null, STDOUT)
    for descriptor in (null, reader, writer):
        os.close(descriptor)
    sys.argv = ["solution.py"]
    for name in ("exit", "quit"):  # the import of site-packages would define them
        setattr(builtins, name, sys.exit)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    for name in list(sys.modules):  # a program's imports must not find this package
        if name.partition(".")[0] == __name__.partition(".")[0]:
            del sys.modules[name]


def set_up(steps: Callable[[], None]) -> None:
    """Take the steps before a program, and report how that went: the first line of reports is "ready".

    No program has run before this line, so none can suppress it. Reports without it mean a broken machine.
    """
    try:
        steps()
    except Exception as error:
        os.write(REPORTS, f"{described(error)}\n".encode())
        os._exit(1)
    os.write(REPORTS, READY)


def take_limits(seconds: float | None, memory_mb: int, threads: bool) -> None:
    """Take the resource limits of one run; a `seconds` of `None` sets no limit on CPU time.

    Without `threads`, the process can start neither threads nor processes.
    """
    limits = [
        ("file size", resource.RLIMIT_FSIZE, 0, 0),
        ("open files", resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
        ("processes", resource.RLIMIT_NPROC, _TASKS if threads else 0, _TASKS if threads else 0),
    ]
    if sys.platform == "linux":  # other kernels do not enforce it
        limits.append(("address space", resource.RLIMIT_AS, memory_mb << 20, memory_mb << 20))
    if seconds is not None:
        limits.append(("CPU time", resource.RLIMIT_CPU, math.ceil(seconds) + 1, math.ceil(seconds) + 2))
    for name, kind, soft, hard in limits:
        try:
            resource.setrlimit(kind, (soft, hard))
        except ValueError:
            most = resource.getrlimit(kind)[1]
            raise ValueError(f"the hard limit on {name} is {most}, below the {soft} asked for (see ulimit)") from None


def run(body: Callable[[], bool]) -> NoReturn:
    """Run `body` and exit; the last report is "done" if `body` returns that it reached its end."""
    random.seed(0)  # a fork seeds it anew; verdicts repeat
    exit_now = os._exit  # the program may replace it
    try:
        finished = body()
    except SystemExit:
        report({"exit": True})
        finished = False
    except MemoryError:
        report({"memory": True})
        finished = False
    except BaseException as error:
        report({"error": described(error)})
        finished = False
    flush_output()
    if finished:
        os.write(REPORTS, DONE)
    exit_now(0 if finished else 1)


def flush_output() -> None:
    """Flush what was printed; a program may have closed or replaced the stream."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()


def report(content: dict[str, Any]) -> None:
    """Write one report for the judge: on a test, or on why there will be no more."""
    data = memoryview((json.dumps(content) + "\n").encode())
    while data:
        data = data[os.write(REPORTS, data) :]


def message_of(error: BaseException) -> str:
    """Return the beginning of an exception's message."""
    try:
        return str(error)[:_MESSAGE_CHARS]
    except BaseException as second:  # the program's own __str__ may raise anything
        return f"(its message raised {type(second).__name__})"


def described(error: BaseException) -> str:
    """Return an exception's type and message as one text."""
    name, text = type(error).__name__, message_of(error)
    return f"{name}: {text}" if text else name
