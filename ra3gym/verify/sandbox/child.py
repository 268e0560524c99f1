"""What every process for one program or one run of tests has in common: its limits, and how it reports."""

from __future__ import annotations

import builtins
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

STDOUT, REPORT, CALLS = 1, 3, 4
"""Descriptors: what is printed, what is reported, and the line between program and tests."""
READY, DONE = b"ready\n", b"done\n"
"""The first and the last line of a report that is whole."""
DESCRIPTORS = 128
"""Most descriptors that the parent has open."""
_MESSAGE_CHARS = 300
_OPEN_FILES = 64
_TASKS = 64


class Places(NamedTuple):
    """Where a process's report and output go, and its line to the other side."""

    report: int
    stdout: int
    calls: int | None


def read_json(file: int, place: tuple[int, int]) -> dict[str, Any]:
    """What stands at a place (start and length) of a batch's file."""
    start, length = place
    parts = []
    while length > 0:
        parts.append(os.pread(file, length, start))
        start, length = start + len(parts[-1]), length - len(parts[-1])
    content: dict[str, Any] = json.loads(b"".join(parts))
    return content


def arrange_descriptors(places: Places) -> None:
    """Put the descriptors where they belong and close every other one but 0 and 2."""
    wanted = [(STDOUT, places.stdout), (REPORT, places.report)]
    if places.calls is not None:
        wanted.append((CALLS, places.calls))
    for number, descriptor in wanted:
        os.dup2(descriptor, DESCRIPTORS + number)  # out of the way of the places first
    for number, _ in wanted:
        os.dup2(DESCRIPTORS + number, number)
    os.closerange(wanted[-1][0] + 1, 2 * DESCRIPTORS)


def keep_descriptors(report: int, others: list[int]) -> list[int]:
    """Put the report in its place, close all that is not in `others`, and say where those are now."""
    moved = [os.dup2(descriptor, DESCRIPTORS + 2 + place) for place, descriptor in enumerate([report, *others])]
    os.closerange(REPORT, DESCRIPTORS + 2)
    os.dup2(moved[0], REPORT)
    os.close(moved[0])
    os.closerange(moved[-1] + 1, 2 * DESCRIPTORS)
    return moved[1:]


def give_stdin(text: str) -> None:
    """Make `text` what the program reads."""
    if not text:
        return  # as `settle` left it
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
    """What every program and all tests find alike, made once for all processes that come from this one."""
    null, (reader, writer) = os.dup(STDOUT), os.pipe()
    os.dup2(writer, STDOUT)  # a stream asks what it writes to, and for a program that will be a pipe
    sys.stdin = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace")
    sys.stdout = os.fdopen(STDOUT, "w", encoding="utf-8", errors="replace", closefd=False)
    os.dup2(null, STDOUT)
    for descriptor in (null, reader, writer):
        os.close(descriptor)
    sys.argv = ["solution.py"]
    for name in ("exit", "quit"):  # what the loader of site-packages would have defined
        setattr(builtins, name, sys.exit)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    here = os.path.dirname(__file__)
    for name, module in list(sys.modules.items()):  # a program's imports shall find none of these
        if name != "__main__" and os.path.dirname(getattr(module, "__file__", None) or "") == here:
            del sys.modules[name]


def set_up(steps: Callable[[], None]) -> None:
    """Take the steps that come ahead of a program, and report how that went: "ready" is a report's first line.

    No program can keep that line back, for none has run before it; so a report without it means a broken machine.
    """
    try:
        steps()
    except Exception as error:
        os.write(REPORT, f"{described(error)}\n".encode())
        os._exit(1)
    os.write(REPORT, READY)


def take_limits(seconds: float | None, memory_mb: int, threads: bool) -> None:
    """The resource limits of one run, without one on CPU time if `seconds` is `None`.

    Without `threads`, no new process or thread can be made.
    """
    limits = [
        ("file size", resource.RLIMIT_FSIZE, 0, 0),
        ("open files", resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
        ("processes", resource.RLIMIT_NPROC, _TASKS if threads else 0, _TASKS if threads else 0),
    ]
    if sys.platform == "linux":  # elsewhere the kernel does not keep it
        limits.append(("address space", resource.RLIMIT_AS, memory_mb << 20, memory_mb << 20))
    if seconds is not None:
        limits.append(("CPU time", resource.RLIMIT_CPU, math.ceil(seconds), math.ceil(seconds) + 1))
    for name, kind, soft, hard in limits:
        try:
            resource.setrlimit(kind, (soft, hard))
        except ValueError:
            most = resource.getrlimit(kind)[1]
            raise ValueError(f"the hard limit on {name} is {most}, below the {soft} asked for (see ulimit)") from None


def run(body: Callable[[], bool]) -> NoReturn:
    """Run `body` and leave; "done" is reported last, when `body` says that it came to its end."""
    random.seed(0)  # a fork seeds it anew; verdicts repeat
    leave = os._exit
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
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):  # the program closed or replaced it
        finished = False
    if finished:
        os.write(REPORT, DONE)
    leave(0)


def report(frame: dict[str, Any]) -> None:
    """Tell the judge about one test."""
    data = memoryview((json.dumps(frame) + "\n").encode())
    while data:
        data = data[os.write(REPORT, data) :]


def message_of(error: BaseException) -> str:
    """What an exception says, cut short."""
    try:
        return str(error)[:_MESSAGE_CHARS]
    except BaseException as second:  # the program's own __str__ may raise anything
        return f"(its message raised {type(second).__name__})"


def described(error: BaseException) -> str:
    """An exception as a message shows it."""
    name, text = type(error).__name__, message_of(error)
    return f"{name}: {text}" if text else name
