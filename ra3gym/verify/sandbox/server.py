"""Serving the judge's batches: start the process of each run, watch it, and answer how it ended.

A batch arrives over the channel as one JSON line with descriptors: a file that holds what the runs read, and for each
run of a program with tests one end of the socket between the two. The answer to a run is one JSON line,
`{"ended", "seconds", "sizes"}`, followed by its reports and its output, in bytes of these two sizes.

The next program is forked from this process and could find whatever the previous one wrote. So none of that becomes an
object here: it passes through two buffers that are cleared after each run.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any, Protocol

from . import child

REPORTS_BYTES = 4 << 20
_MAX_CONNECTIONS = 64
_PATIENCE_MS = 100


class Starter(Protocol):
    """Starts the process of a run, and ends it."""

    def start(self, run: dict[str, Any], file: int, descriptors: child.Descriptors) -> int:
        """Start a process that writes to `descriptors`, and return its id."""

    def end(self, pid: int) -> None:
        """Kill and reap the process and all its descendants."""


def connect() -> socket.socket:
    """Return the channel to the judge, this process's stdin, and open /dev/null as 0, 1 and 2."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2 * child.MAX_DESCRIPTORS:
        error = f"the hard limit on open files is {most}, {2 * child.MAX_DESCRIPTORS} are needed (see ulimit)"
        send(channel, {"failed": "taking limits", "error": error})
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * child.MAX_DESCRIPTORS, most))
    return channel


def send(channel: socket.socket, answer: dict[str, Any]) -> None:
    """Send one answer."""
    channel.sendall(json.dumps(answer).encode() + b"\n")


class Server:
    """Answers batches of runs until the judge closes the channel."""

    def __init__(self, channel: socket.socket, role: str, starter: Starter) -> None:
        self.channel, self._role, self._starter = channel, role, starter
        self.reports, self._stdout = Stream(), Stream()

    def serve(self) -> None:
        """Send that this process is ready, then answer."""
        send(self.channel, {"ready": True})
        while (batch := self._receive()) is not None:
            runs, (file, *connections) = batch
            self.serve_batch(runs, file, connections)
            os.close(file)

    def serve_batch(self, runs: list[dict[str, Any]], file: int, connections: list[int]) -> None:
        """Answer each run, in order; `connections` has one descriptor for each run that is connected."""
        out_of_time = None
        for run in runs:
            connection = connections.pop(0) if run["connected"] else None
            if run["submission"] == out_of_time:  # its other runs would time out as well
                send(self.channel, {"ended": "skipped", "seconds": 0.0, "sizes": [0, 0]})
            elif self._answer(run, file, connection) == "timeout":
                out_of_time = run["submission"]

    def _receive(self) -> tuple[list[dict[str, Any]], list[int]] | None:
        """Receive the runs of the next batch and the descriptors that came with it; `None` at the end."""
        line, descriptors = b"", []
        while not line.endswith(b"\n"):
            piece, received, _, _ = socket.recv_fds(self.channel, 1 << 16, 1 + _MAX_CONNECTIONS)
            if not piece:
                return None
            line += piece
            descriptors += received
        return json.loads(line), descriptors

    def _answer(self, run: dict[str, Any], file: int, connection: int | None) -> str:
        """Make a run, answer it, and return how it ended."""
        if connection is not None and self._role == "tests":
            wait_until_loaded(connection)
        reports, reports_end = os.pipe()
        stdout, stdout_end = os.pipe()
        started = time.monotonic()
        pid = self._starter.start(run, file, child.Descriptors(reports_end, stdout_end, connection))
        for descriptor in (reports_end, stdout_end, connection):
            if descriptor is not None:  # while this process held it, its reader would not see the end
                os.close(descriptor)
        self.reports.open(reports, REPORTS_BYTES)
        self._stdout.open(stdout, run["stdout_bytes"])
        ended = self.read(pid, [self.reports, self._stdout], started + run["seconds"])
        os.close(reports)
        os.close(stdout)
        self._starter.end(pid)
        sizes = [self.reports.size, self._stdout.size]
        send(self.channel, {"ended": ended, "seconds": time.monotonic() - started, "sizes": sizes})
        self.reports.pass_on(self.channel)
        self._stdout.pass_on(self.channel)
        return ended

    def read(self, pid: int, streams: Sequence[Stream], deadline: float, until_done: bool = False) -> str:
        """Read the streams of a process to their ends, or until the last report, and return how the process ended."""
        still_open = {stream.descriptor: stream for stream in streams}
        poll = select.poll()
        poll.register(self.channel, 0)  # reports only that the judge closed it
        for descriptor in still_open:
            poll.register(descriptor, select.POLLIN)
        while still_open and not (until_done and self.reports.ends_with(child.DONE)):
            left = deadline - time.monotonic()
            ready = poll.poll(max(0, left * 1000)) if left > 0 else []
            if not ready:
                return "timeout"
            for descriptor, _ in ready:
                if descriptor == self.channel.fileno():
                    self._starter.end(pid)
                    os._exit(0)
                stream = still_open[descriptor]
                if not stream.read():
                    poll.unregister(descriptor)
                    del still_open[descriptor]
                elif stream.overflows:
                    return "output_limit"
        return "exited" if self.reports.ends_with(child.DONE) else ending(pid)


class Stream:
    """Passes on the data of a descriptor, up to a cap, through memory that it clears afterwards."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.descriptor = -1
        self._cap = self._used = 0

    def open(self, descriptor: int, cap: int) -> None:
        """Start to read from a descriptor."""
        if len(self._buffer) <= cap:
            self._buffer = bytearray(cap + 1)
        self.descriptor, self._cap, self._used = descriptor, cap, 0

    @property
    def size(self) -> int:
        """The number of bytes to pass on."""
        return min(self._used, self._cap)

    @property
    def overflows(self) -> bool:
        """Whether more data than the cap arrived."""
        return self._used > self._cap

    def read(self) -> int:
        """Read what has arrived, and return its number of bytes: 0 at the end."""
        with memoryview(self._buffer) as whole, whole[self._used : self._cap + 1] as room:
            number = os.readv(self.descriptor, [room])
        self._used += number
        return number

    def ends_with(self, line: bytes) -> bool:
        """Whether the last line read is `line`."""
        with memoryview(self._buffer) as whole:
            return whole[max(0, self._used - len(line)) : self._used] == line

    def pass_on(self, channel: socket.socket) -> None:
        """Send what was read, and clear it from memory."""
        with memoryview(self._buffer) as whole:
            channel.sendall(whole[: self.size])
            whole[: self._used] = bytes(self._used)


def wait_until_loaded(connection: int) -> None:
    """Wait until the connected program has loaded or ended, which it does within its own time limit."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.poll()


def ending(pid: int) -> str:
    """Return how a process ended that closed its reports; a process that still runs counts as exited."""
    state = None
    for _ in range(_PATIENCE_MS):
        state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state is not None:
            break
        time.sleep(0.001)  # waitid has no timeout, and the process may never end
    if state is None or state.si_code == os.CLD_EXITED:
        return "exited"
    match state.si_status:
        case signal.SIGXCPU:
            return "timeout"
        case signal.SIGKILL:  # not by this process: the kernel ran out of memory
            return "memory"
        case number:
            return f"signal {number}"
