"""What every process for one program or one run of tests has in common: its limits, and how it reports."""

from __future__ import annotations

import io
import json
import math
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import linux
elif sys.platform == "linux":
    import linux

STDOUT, REPORT, CALLS = 1, 3, 4
"""Descriptors: what is printed, what is reported, and the line between program and tests."""
DESCRIPTORS = 128
"""Most descriptors that a zygote has open."""
_MESSAGE_CHARS = 300
_OPEN_FILES = 64
_TASKS = 64


def arrange_descriptors(report: int, stdout: int, calls: int | None) -> None:
    """Put the descriptors in their places and close every other one but 0 and 2."""
    high = DESCRIPTORS  # out of the way of the places
    for descriptor, number in ((report, REPORT), (stdout, STDOUT), (calls, CALLS)):
        if descriptor is not None:
            os.dup2(descriptor, high + number)
    for number in (REPORT, STDOUT, CALLS) if calls is not None else (REPORT, STDOUT):
        os.dup2(high + number, number)
    os.closerange(CALLS + (calls is not None), high + CALLS + 1)


def give_stdin(content: bytes) -> None:
    """Make `content` what the program reads."""
    if content and hasattr(os, "memfd_create"):
        file = os.memfd_create("stdin")  # not a pipe: programs ask for its size
        os.write(file, content)
        os.lseek(file, 0, os.SEEK_SET)
        os.dup2(file, 0)
        os.close(file)
        raw: io.BufferedIOBase = os.fdopen(0, "rb", closefd=False)
    else:
        raw = io.BytesIO(content)
    sys.stdin = io.TextIOWrapper(raw, encoding="utf-8", errors="replace")


def run(body: Callable[[], bool], token: str, run: dict[str, Any], filter_program: bytes) -> NoReturn:
    """Take the limits, run `body` and leave; the token is reported last, when `body` says it came to its end."""
    sys.stdout = os.fdopen(STDOUT, "w", encoding="utf-8", errors="replace", closefd=False)
    _take_limits(run["seconds"], run["memory_mb"])
    if filter_program:
        linux.install_filter(filter_program)
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
        os.write(REPORT, token.encode())
    leave(0)


def report(frame: dict[str, Any]) -> None:
    """Tell the judge about one test."""
    data = memoryview((json.dumps(frame) + "\n").encode())
    while data:
        data = data[os.write(REPORT, data) :]


def described(error: BaseException) -> str:
    """An exception as a message shows it."""
    try:
        text = str(error)
    except BaseException as second:  # the program's own __str__ may raise anything
        text = f"(its message raised {type(second).__name__})"
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:_MESSAGE_CHARS]


def _take_limits(seconds: float, memory_mb: int) -> None:
    cpu = math.ceil(seconds)
    limits = [
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, _TASKS, _TASKS),
    ]
    if sys.platform == "linux":  # elsewhere the kernel does not keep it
        limits.append((resource.RLIMIT_AS, memory_mb << 20, memory_mb << 20))
    for kind, soft, hard in limits:
        resource.setrlimit(kind, (soft, hard))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
