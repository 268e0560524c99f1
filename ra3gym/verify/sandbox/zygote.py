"""The process that programs are forked from: isolated and warmed up once, then one child for each run.

`start.py` starts it, with a socket to the judge as its stdin and an environment of few variables. Only the child reads
what it runs, so no program finds another one in the memory it was forked from.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
from typing import Any

from . import child, program, server, tests_server
from .isolation import linux, namespaces, seccomp

# Few: the smaller a process, the faster its fork. Other modules cost the programs that import them some milliseconds.
_WARM = (
    "abc bisect collections collections.abc copy enum functools heapq io itertools json math operator random re "
    "string typing"
)


def main(role: str) -> None:
    """Isolate this process, report how that went, and serve batches until the judge closes the channel."""
    channel = server.connect()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # pid 1 ignores it then; Python's own handler would end pid 1
    try:
        namespaces.enter()
    except OSError as error:
        server.send(channel, {"failed": getattr(error, "step", "setting up the sandbox"), "error": str(error)})
        os._exit(1)
    for name in _WARM.split():
        __import__(name)
    compile("0", "<warm>", "exec")  # an interpreter's first compilation takes 2 ms
    child.settle()
    gc.collect()
    gc.freeze()
    zygote = Zygote()
    if role == "tests":
        tests_server.TestsServer(channel, zygote, zygote.limit_tests).serve()
    else:
        server.Server(channel, role, zygote).serve()


class Zygote:
    """Forks the process of each run. As pid 1 of its namespace it can end every process in there."""

    def __init__(self) -> None:
        self._filter = seccomp.filter_program(linux.MACHINE)

    def start(self, run: dict[str, Any], file: int, descriptors: child.Descriptors) -> int:
        """See `server.Starter`."""
        pid = os.fork()
        if pid != 0:
            return pid
        try:
            job = child.read_json(file, run["at"])
            child.arrange_descriptors(descriptors)

            def take_limits() -> None:
                child.give_stdin(job.get("stdin", ""))
                child.take_limits(run["budgets"] * run["seconds"], run["memory_mb"], threads=True)
                linux.install_filter(self._filter)

            child.set_up(take_limits)
            child.run(functools.partial(program.run, job))
        finally:
            os._exit(1)

    def limit_tests(self, run: dict[str, Any]) -> None:
        """Take the limits of a run's tests for this process, but none on CPU time, which the server watches."""
        child.take_limits(None, run["memory_mb"], threads=True)
        linux.install_filter(self._filter)

    def end(self, pid: int) -> None:
        """See `server.Starter`."""
        assert os.getpid() == 1  # of its own namespace: elsewhere, -1 would mean every process
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        os.waitpid(pid, 0)
