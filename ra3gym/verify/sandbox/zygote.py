"""The process that programs are forked from: isolated and warmed up once, then one child per run.

Started as `python -s -P -S -B zygote.py ROLE`, with a socket to the judge as its stdin and a scrubbed environment.
What a program is made of is read by its child alone, so no program finds another in the memory it was forked from.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import child, linux, namespaces, seccomp, serving, solution, testing
else:
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, _HERE)
    import child
    import linux
    import namespaces
    import seccomp
    import serving
    import solution
    import testing

    sys.path.remove(_HERE)

# Few: the smaller a process, the sooner it is forked. What else a program imports costs it a few milliseconds.
_WARM = (
    "abc bisect collections collections.abc copy enum functools heapq io itertools json math operator random re "
    "string typing"
)


def main() -> None:
    """Shut this process in, say how that went, and serve batches until the judge hangs up."""
    channel, role = serving.connect()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which pid 1 does not heed; Python's own handler would end it
    try:
        namespaces.enter()
    except OSError as error:
        serving.tell(channel, {"failed": getattr(error, "step", "setting up the sandbox"), "error": str(error)})
        os._exit(1)
    for name in _WARM.split():
        __import__(name)
    compile("0", "<warm>", "exec")  # the first costs an interpreter 2 ms
    child.settle()
    gc.collect()
    gc.freeze()
    zygote = Zygote()
    if role == "solution":
        serving.Server(channel, role, zygote).serve()
    else:
        testing.TestServer(channel, zygote, zygote.shut_in_tests).serve()


class Zygote:
    """Forks the process of each run; as pid 1 of its namespace it can end all there is in it."""

    def __init__(self) -> None:
        self._filter = seccomp.filter_program(linux.MACHINE)

    def start(self, run: dict[str, Any], file: int, places: child.Places) -> int:
        """See `serving.Starter`."""
        pid = os.fork()
        if pid != 0:
            return pid
        try:
            job = child.read_json(file, run["at"])
            child.arrange_descriptors(places)

            def shut_in() -> None:
                child.give_stdin(job.get("stdin", ""))
                child.take_limits(run["seconds"], run["memory_mb"], threads=True)
                linux.install_filter(self._filter)

            child.set_up(shut_in)
            child.run(functools.partial(solution.run, job))
        finally:
            os._exit(1)

    def shut_in_tests(self, run: dict[str, Any]) -> None:
        """Take the limits of tests for this process; of time, the wall clock's is enough."""
        child.take_limits(None, run["memory_mb"], threads=True)
        linux.install_filter(self._filter)

    def end(self, pid: int) -> None:
        """See `serving.Starter`."""
        assert os.getpid() == 1  # of a namespace of its own: elsewhere, -1 would mean everybody
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
