"""Serving the judge's batches: start the process of each run, watch it, and answer how it ended.

A batch arrives over the channel as one JSON line with descriptors: a file that holds what the runs read, and for each
run of a program with tests one end of the socket between the two. The answer to a run is one JSON line (see `answer`),
followed by its reports and its output, in bytes of the line's two sizes.

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
_OUT_OF_TIME = ("cpu_limit", "wall_limit")
_LEAST_WAIT = 0.01
_LONGEST_WAIT_FOR_EXIT = 0.05


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
                send(self.channel, answer("skipped", None, 0.0, 0.0, [0, 0]))
            elif self._answer(run, file, connection) in _OUT_OF_TIME:
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
        watch = Watch(pid, run)
        ended = self.read(pid, [self.reports, self._stdout], watch)
        code = exit_code(pid)
        seconds, cpu_seconds = time.monotonic() - started, watch.cpu_seconds
        os.close(reports)
        os.close(stdout)
        self._starter.end(pid)
        sizes = [self.reports.size, self._stdout.size]
        send(self.channel, answer(ended, code, seconds, cpu_seconds, sizes))
        self.reports.pass_on(self.channel)
        self._stdout.pass_on(self.channel)
        return ended

    def read(self, pid: int, streams: Sequence[Stream], watch: Watch, until_done: bool = False) -> str:
        """Read the streams of a process to their ends, or until the last report, and return how the process ended."""
        still_open = {stream.descriptor: stream for stream in streams}
        poll = select.poll()
        poll.register(self.channel, 0)  # reports only that the judge closed it
        for descriptor in still_open:
            poll.register(descriptor, select.POLLIN)
        while still_open and not (until_done and self.reports.ends_with(child.DONE)):
            if (exceeded := watch.exceeded) is not None:
                return exceeded
            for descriptor, _ in poll.poll(1000 * watch.wait):
                if descriptor == self.channel.fileno():
                    self._starter.end(pid)
                    os._exit(0)
                stream = still_open[descriptor]
                lines = self.reports.lines
                number = stream.read()
                watch.count(self.reports.lines - lines)
                if not number:
                    poll.unregister(descriptor)
                    del still_open[descriptor]
                elif stream.overflows:
                    return "output_limit"
        return "exited" if self.reports.ends_with(child.DONE) else ending(pid, watch)


class Watch:
    """Watches the CPU time and the wall-clock time of a process.

    A run whose limits are those of one test has a budget of time for each. The first line of its reports says that the
    program begins, each further line is about one test, and each of them begins the next budget. A program that forges
    such lines has no more time than one that uses all its budgets.
    """

    def __init__(self, pid: int, run: dict[str, Any]) -> None:
        """Begin the first budget; `pid` must be a child of this process."""
        self._clock = (~pid << 3) | 2  # the kernel's number for the CPU clock of a process: CPUCLOCK_SCHED
        self._cpu_limit: float = run["seconds"]
        self._wall_limit: float = run["wall_seconds"]
        self._budgets: int = run["budgets"]
        self._begin()
        self._first_cpu = self._begin_cpu

    @property
    def cpu_seconds(self) -> float:
        """CPU time since this object was made; 0 where the system has no such clock."""
        return self._cpu() - self._first_cpu

    @property
    def exceeded(self) -> str | None:
        """Which limit the process has exceeded: "cpu_limit", "wall_limit" or `None`."""
        if self._cpu() - self._begin_cpu >= self._cpu_limit:
            return "cpu_limit"
        return "wall_limit" if time.monotonic() - self._begin_wall >= self._wall_limit else None

    @property
    def wait(self) -> float:
        """Seconds until the limits are to be looked at again. Threads may use CPU time faster than the clock runs."""
        cpu_left = self._cpu_limit - (self._cpu() - self._begin_cpu)
        wall_left = self._wall_limit - (time.monotonic() - self._begin_wall)
        return max(_LEAST_WAIT, min(cpu_left / 2, wall_left))

    def count(self, lines: int) -> None:
        """Begin the next budget, if there is one, for new lines of the reports."""
        if lines and self._budgets:
            self._budgets -= min(lines, self._budgets)
            self._begin()

    def _begin(self) -> None:
        self._begin_cpu, self._begin_wall = self._cpu(), time.monotonic()

    def _cpu(self) -> float:
        try:
            return float(time.clock_gettime(self._clock))
        except (OSError, AttributeError):  # macOS: the process's own limit on CPU time, in whole seconds, must do
            return 0.0


def answer(ended: str, code: int | None, seconds: float, cpu_seconds: float, sizes: list[int]) -> dict[str, Any]:
    """Return the answer to a run."""
    return {"ended": ended, "exit_code": code, "seconds": seconds, "cpu_seconds": cpu_seconds, "sizes": sizes}


class Stream:
    """Passes on the data of a descriptor, up to a cap, through memory that it clears afterwards."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.descriptor = -1
        self.lines = 0
        self._cap = self._used = 0

    def open(self, descriptor: int, cap: int) -> None:
        """Start to read from a descriptor."""
        if len(self._buffer) <= cap:
            self._buffer = bytearray(cap + 1)
        self.descriptor, self.lines, self._cap, self._used = descriptor, 0, cap, 0

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
        self.lines += self._buffer.count(b"\n", self._used, self._used + number)
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


def ending(pid: int, watch: Watch) -> str:
    """Wait for a process that closed its reports and its output to end, and return how it ended."""
    wait = 0.001
    while (state := _exit_state(pid)) is None:
        if (exceeded := watch.exceeded) is not None:
            return exceeded
        time.sleep(wait)  # waitid has no timeout
        wait = min(2 * wait, _LONGEST_WAIT_FOR_EXIT)
    if state.si_code == os.CLD_EXITED:
        return "exited"
    match state.si_status:
        case signal.SIGXCPU:
            return "cpu_limit"
        case signal.SIGKILL:  # not by this process: the kernel did it, at the hard limit on CPU time or out of memory
            return watch.exceeded or "memory"
        case number:
            return f"signal {number}"


def exit_code(pid: int) -> int | None:
    """Return the exit code of a process that has exited, without reaping it; `None` for any other."""
    state = _exit_state(pid)
    return state.si_status if state is not None and state.si_code == os.CLD_EXITED else None


def _exit_state(pid: int) -> os.waitid_result | None:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
