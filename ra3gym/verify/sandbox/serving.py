"""Serving the judge's batches: have each run's process started, watch it, and say how it ended.

A batch comes over the channel as one JSON line, with descriptors: a file that holds what is to run, and a line to the
other side (program or tests) for each run that has one. Each run is answered by one JSON line,
`{"frames", "finished", "ended", "stdout", "seconds"}`; what a process reports is passed on as text.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import child
else:
    import child

_REPORT_BYTES = 4 << 20
_MAX_LINES = 64
_PATIENCE_MS = 100
_SKIPPED = {"frames": [], "finished": False, "ended": "skipped", "stdout": "", "seconds": 0.0}


class Starter(Protocol):
    """Starts the process of a run, and ends it."""

    def start(self, run: dict[str, Any], file: int, token: str, places: child.Places) -> int:
        """The process id; its report and output go to `places`."""

    def end(self, pid: int) -> None:
        """Kill and reap it, and all that came from it."""


def connect() -> tuple[socket.socket, str]:
    """The channel, which is this process's stdin, and its role: "solution" or "tester". Afterwards 0, 1, 2 are null."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2 * child.DESCRIPTORS:
        error = f"the hard limit on open files is {most}, {2 * child.DESCRIPTORS} are needed (see ulimit)"
        tell(channel, {"failed": "taking limits", "error": error})
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * child.DESCRIPTORS, most))
    return channel, sys.argv[1]


def tell(channel: socket.socket, answer: dict[str, Any]) -> None:
    """Send one answer."""
    channel.sendall(json.dumps(answer).encode() + b"\n")


def serve(channel: socket.socket, role: str, starter: Starter) -> None:
    """Answer batches until the judge hangs up."""
    tell(channel, {"ready": True})
    while (batch := _receive(channel)) is not None:
        runs, (file, *lines) = batch
        out_of_time = None
        for run in runs:
            line = lines.pop(0) if run["line"] else None
            if run["job"] == out_of_time:  # and so would its other runs be
                answer = _SKIPPED
            else:
                if line is not None and role == "tester":
                    _wait_for_word(line)
                answer = _run(run, file, line, starter)
            if answer["ended"] == "timeout":
                out_of_time = run["job"]
            tell(channel, answer)
        os.close(file)


def _receive(channel: socket.socket) -> tuple[list[dict[str, Any]], list[int]] | None:
    """The runs of the next batch and the descriptors that came with it; `None` at the end."""
    line, descriptors = b"", []
    while not line.endswith(b"\n"):
        piece, received, _, _ = socket.recv_fds(channel, 1 << 16, 1 + _MAX_LINES)
        if not piece:
            return None
        line += piece
        descriptors += received
    return json.loads(line), descriptors


def _wait_for_word(line: int) -> None:
    """Wait until the program at the other end has loaded, or ended: which it does within its own limit."""
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.poll()


def _run(run: dict[str, Any], file: int, line: int | None, starter: Starter) -> dict[str, Any]:
    token = os.urandom(16).hex()
    report, reported = os.pipe()
    stdout, printed = os.pipe()
    started = time.monotonic()
    pid = starter.start(run, file, token, child.Places(reported, printed, line))
    for descriptor in (reported, printed, line):
        if descriptor is not None:  # whoever reads at the other end must see the end
            os.close(descriptor)
    data, cut = _read({report: _REPORT_BYTES, stdout: run["stdout_bytes"]}, started + run["seconds"])
    os.close(report)
    os.close(stdout)
    *frames, rest = data[report].decode("utf-8", "replace").split("\n")
    finished = rest == token and not cut  # otherwise it is nothing, or the half of a frame
    ended = _ending(pid) if not cut and not finished else cut
    starter.end(pid)
    if data[report].startswith(child.READY):
        del frames[0]
    elif not cut:
        ended = "broken"
    return {
        "frames": frames,
        "finished": finished,
        "ended": ended,
        "stdout": data[stdout].decode("utf-8", "replace"),
        "seconds": time.monotonic() - started,
    }


def _read(caps: dict[int, int], deadline: float) -> tuple[dict[int, bytes], str]:
    """What came from each descriptor, and why reading stopped: `""` at the end of all of them."""
    data = {fd: bytearray() for fd in caps}
    poll = select.poll()
    for fd in caps:
        poll.register(fd, select.POLLIN)
    still_open, cut = len(caps), ""
    while still_open and not cut:
        left = deadline - time.monotonic()
        ready = poll.poll(max(0, left * 1000)) if left > 0 else []
        if not ready:
            cut = "timeout"
        for fd, _ in ready:
            piece = os.read(fd, 1 << 16)
            data[fd] += piece
            if not piece:
                poll.unregister(fd)
                still_open -= 1
            elif len(data[fd]) > caps[fd]:
                cut = "output_limit"
    return {fd: bytes(read[: caps[fd]]) for fd, read in data.items()}, cut


def _ending(pid: int) -> str:
    """How a process ended that reports no more; one that lives on nevertheless counts as having left."""
    found = None
    for _ in range(_PATIENCE_MS):
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            break
        time.sleep(0.001)
    if found is None or found.si_code == os.CLD_EXITED:
        return "exited"
    match found.si_status:
        case signal.SIGXCPU:
            return "timeout"
        case signal.SIGKILL:  # not from us: the kernel ran out of memory
            return "memory"
        case number:
            return f"signal {number}"
