"""The process that programs are forked from: isolated and warmed up once, then one child per run.

Started as `python -s -P -S -B zygote.py OPTIONS`, with a socket to the judge as its stdin and a scrubbed environment.
A batch comes as one JSON line, with descriptors: a file that holds what is to run, and a line to the other zygote for
each run that needs one. What a program is made of is read by its child alone, so that no program can find another's
in the memory it was forked from. Each run is answered by one JSON line,
`{"frames", "finished", "ended", "stdout", "seconds"}`; what a child reports is passed on as text.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import child, linux, namespaces, seccomp, solution, tester
else:
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, _HERE)
    import child
    import solution
    import tester

    if sys.platform == "linux":
        import linux
        import namespaces
        import seccomp
    sys.path.remove(_HERE)

_REPORT_BYTES = 4 << 20
_MAX_LINES = 64
_MAX_EXAMS = 256
_PATIENCE_MS = 100
_WARM = (
    "abc bisect collections collections.abc copy dataclasses datetime decimal enum fractions functools hashlib heapq "
    "io itertools json math operator random re statistics string textwrap typing"
)
_OURS = ("calls", "child", "encoding", "linux", "namespaces", "seccomp", "solution", "tester")

Body = Callable[[], bool]


def main() -> None:
    """Set up as the options say, tell how that went, and serve batches until the judge hangs up."""
    options = json.loads(sys.argv[1])
    channel = socket.socket(fileno=os.dup(0))
    _silence()
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * child.DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        namespaces.enter()
        filter_program = seccomp.filter_program(linux.MACHINE)
    except OSError as error:
        _send(channel, {"failed": getattr(error, "step", "setting up the sandbox"), "error": str(error)})
        os._exit(1)
    _warm_up()
    _send(channel, {"ready": True})
    zygote = Zygote(filter_program)
    run = zygote.run_solution if options["role"] == "solution" else zygote.run_tests
    while (batch := _receive(channel)) is not None:
        runs, (file, *lines) = batch
        out_of_time = None
        for each in runs:
            line = lines.pop(0) if each["line"] else None
            if each["job"] == out_of_time:  # and so would its other runs be
                answer = {"frames": [], "finished": False, "ended": "skipped", "stdout": "", "seconds": 0.0}
            else:
                answer = run(each, file, line)
            if answer["ended"] == "timeout":
                out_of_time = each["job"]
            _send(channel, answer)
        os.close(file)


class Zygote:
    """Forks a child for each run, watches it and says how it ended."""

    def __init__(self, filter_program: bytes) -> None:
        self._filter = filter_program
        self._exams: dict[str, tester.Exam] = {}

    def run_solution(self, run: dict[str, Any], file: int, line: int | None) -> dict[str, Any]:
        """Run a program: on what lies beside it in the file, or for the tests at the other end of the line."""

        def prepare() -> tuple[bytes, Body]:
            job = _read_json(file, run["at"])
            return job.pop("stdin", "").encode("utf-8", "replace"), functools.partial(solution.run, job)

        return self._run(run, line, prepare)

    def run_tests(self, run: dict[str, Any], file: int, line: int | None) -> dict[str, Any]:
        """Run an exam's tests, once the program at the other end of the line has loaded."""
        assert line is not None
        exam = self._exams.pop(run["exam"], None) or tester.compiled(_read_json(file, run["at"]))
        self._exams[run["exam"]] = exam
        if len(self._exams) > _MAX_EXAMS:
            del self._exams[next(iter(self._exams))]
        poll = select.poll()
        poll.register(line, select.POLLIN)
        poll.poll()  # it loads or ends within its own limit
        return self._run(run, line, lambda: (b"", functools.partial(tester.run, exam)))

    def _run(self, run: dict[str, Any], line: int | None, prepare: Callable[[], tuple[bytes, Body]]) -> dict[str, Any]:
        token = os.urandom(16).hex()
        report_in, report_out = os.pipe()
        stdout_in, stdout_out = os.pipe()
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            try:
                stdin, body = prepare()
                child.arrange_descriptors(report_out, stdout_out, line)
                child.give_stdin(stdin)
                child.run(body, token, run, self._filter)
            finally:
                os._exit(1)
        for descriptor in (report_out, stdout_out, line):
            if descriptor is not None:  # whoever reads at the other end must see the end
                os.close(descriptor)
        data, cut = _read({report_in: _REPORT_BYTES, stdout_in: run["stdout_bytes"]}, started + run["seconds"])
        os.close(report_in)
        os.close(stdout_in)
        *frames, rest = data[report_in].decode("utf-8", "replace").split("\n")
        finished = rest == token and not cut  # otherwise it is nothing, or the half of a frame
        ended = _ending(pid) if not cut and not finished else cut
        _end_all()
        return {
            "frames": frames,
            "finished": finished,
            "ended": ended,
            "stdout": data[stdout_in].decode("utf-8", "replace"),
            "seconds": time.monotonic() - started,
        }


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _warm_up() -> None:
    for name in _WARM.split():
        __import__(name)
    for name in ("exit", "quit"):  # what the loader of site-packages would have defined
        setattr(builtins, name, sys.exit)
    for name in _OURS:
        sys.modules.pop(name, None)
    gc.collect()
    gc.freeze()


def _send(channel: socket.socket, answer: dict[str, Any]) -> None:
    channel.sendall(json.dumps(answer).encode() + b"\n")


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


def _read_json(file: int, place: tuple[int, int]) -> dict[str, Any]:
    start, length = place
    parts = []
    while length > 0:
        parts.append(os.pread(file, length, start))
        start, length = start + len(parts[-1]), length - len(parts[-1])
    content: dict[str, Any] = json.loads(b"".join(parts))
    return content


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
    """How a child ended that reports no more; one that lives on nevertheless counts as having left."""
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


def _end_all() -> None:
    """Kill and reap all processes of the namespace but this one."""
    assert os.getpid() == 1  # of a namespace of its own: elsewhere, -1 would mean everybody
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()
