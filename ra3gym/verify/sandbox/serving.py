"""Serving the judge's batches: have each run's process started, watch it, and say how it ended.

A batch comes over the channel as one JSON line, with descriptors: a file that holds what is to run, and a line to the
other side (program or tests) for each run that has one. Each run is answered by one JSON line,
`{"ended", "seconds", "sizes"}`, and as many bytes of report and of output as the sizes say.

The next program is forked from here, and would find whatever the one before it said. So nothing of that becomes an
object of this process: it passes through two buffers that are cleared each time.
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

REPORT_BYTES = 4 << 20
_MAX_LINES = 64
_PATIENCE_MS = 100


class Starter(Protocol):
    """Starts the process of a run, and ends it."""

    def start(self, run: dict[str, Any], file: int, places: child.Places) -> int:
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


class Server:
    """Answers batches until the judge hangs up."""

    def __init__(self, channel: socket.socket, role: str, starter: Starter) -> None:
        self.channel, self._role, self._starter = channel, role, starter
        self.report, self._stdout = Stream(), Stream()

    def serve(self) -> None:
        """Say that all is ready, then answer."""
        tell(self.channel, {"ready": True})
        while (batch := self._receive()) is not None:
            runs, (file, *lines) = batch
            self.serve_batch(runs, file, lines)
            os.close(file)

    def serve_batch(self, runs: list[dict[str, Any]], file: int, lines: list[int]) -> None:
        """Answer each run, in order; `lines` are those of the runs that have one."""
        out_of_time = None
        for run in runs:
            line = lines.pop(0) if run["line"] else None
            if run["job"] == out_of_time:  # and so would its other runs be
                tell(self.channel, {"ended": "skipped", "seconds": 0.0, "sizes": [0, 0]})
            elif self._answer(run, file, line) == "timeout":
                out_of_time = run["job"]

    def _receive(self) -> tuple[list[dict[str, Any]], list[int]] | None:
        """The runs of the next batch and the descriptors that came with it; `None` at the end."""
        line, descriptors = b"", []
        while not line.endswith(b"\n"):
            piece, received, _, _ = socket.recv_fds(self.channel, 1 << 16, 1 + _MAX_LINES)
            if not piece:
                return None
            line += piece
            descriptors += received
        return json.loads(line), descriptors

    def _answer(self, run: dict[str, Any], file: int, line: int | None) -> str:
        """Have a run made and answer it; what ended it."""
        if line is not None and self._role == "tester":
            wait_for_word(line)
        report, reported = os.pipe()
        stdout, printed = os.pipe()
        started = time.monotonic()
        pid = self._starter.start(run, file, child.Places(reported, printed, line))
        for descriptor in (reported, printed, line):
            if descriptor is not None:  # whoever reads at the other end must see the end
                os.close(descriptor)
        self.report.open(report, REPORT_BYTES)
        self._stdout.open(stdout, run["stdout_bytes"])
        ended = self._read(pid, started + run["seconds"])
        if not ended:
            ended = "exited" if self.report.ends_with(child.DONE) else ending(pid)
        os.close(report)
        os.close(stdout)
        self._starter.end(pid)
        sizes = [self.report.size, self._stdout.size]
        tell(self.channel, {"ended": ended, "seconds": time.monotonic() - started, "sizes": sizes})
        self.report.pass_on(self.channel)
        self._stdout.pass_on(self.channel)
        return ended

    def _read(self, pid: int, deadline: float) -> str:
        """Read report and output to their ends; why reading stopped before, or `""`."""
        streams = {stream.descriptor: stream for stream in (self.report, self._stdout)}
        poll = select.poll()
        poll.register(self.channel, 0)  # says whether the judge has hung up
        for descriptor in streams:
            poll.register(descriptor, select.POLLIN)
        still_open = len(streams)
        while still_open:
            left = deadline - time.monotonic()
            ready = poll.poll(max(0, left * 1000)) if left > 0 else []
            if not ready:
                return "timeout"
            for descriptor, _ in ready:
                if descriptor == self.channel.fileno():
                    self._starter.end(pid)
                    os._exit(0)
                stream = streams[descriptor]
                if not stream.read():
                    poll.unregister(descriptor)
                    still_open -= 1
                elif stream.overflows:
                    return "output_limit"
        return ""


class Stream:
    """Passes on what comes from a descriptor, up to a cap, through memory that is cleared afterwards."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.descriptor = -1
        self._cap = self._used = 0

    def open(self, descriptor: int, cap: int) -> None:
        """Read from here now."""
        if len(self._buffer) <= cap:
            self._buffer = bytearray(cap + 1)
        self.descriptor, self._cap, self._used = descriptor, cap, 0

    @property
    def size(self) -> int:
        """Bytes to pass on."""
        return min(self._used, self._cap)

    @property
    def overflows(self) -> bool:
        """Whether more came than the cap."""
        return self._used > self._cap

    def read(self) -> int:
        """Take what has arrived; 0 at the end."""
        with memoryview(self._buffer) as whole, whole[self._used : self._cap + 1] as room:
            number = os.readv(self.descriptor, [room])
        self._used += number
        return number

    def ends_with(self, line: bytes) -> bool:
        """Whether this is the last that was read."""
        with memoryview(self._buffer) as whole:
            return whole[max(0, self._used - len(line)) : self._used] == line

    def pass_on(self, channel: socket.socket) -> None:
        """Send what was read, and leave nothing of it."""
        with memoryview(self._buffer) as whole:
            channel.sendall(whole[: self.size])
            whole[: self._used] = bytes(self._used)


def wait_for_word(line: int) -> None:
    """Wait until the program at the other end has loaded, or ended: which it does within its own limit."""
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.poll()


def ending(pid: int) -> str:
    """How a process ended that reports no more; one that lives on nevertheless counts as having left."""
    found = None
    for _ in range(_PATIENCE_MS):
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            break
        time.sleep(0.001)  # waitid takes no timeout, and a process that does not end must not be waited for
    if found is None or found.si_code == os.CLD_EXITED:
        return "exited"
    match found.si_status:
        case signal.SIGXCPU:
            return "timeout"
        case signal.SIGKILL:  # not from us: the kernel ran out of memory
            return "memory"
        case number:
            return f"signal {number}"
