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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import child, linux, namespaces, seccomp, serving, solution, tester
else:
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, _HERE)
    import child
    import linux
    import namespaces
    import seccomp
    import serving
    import solution
    import tester

    sys.path.remove(_HERE)

_MAX_EXAMS = 256
_WARM = (
    "abc bisect collections collections.abc copy dataclasses datetime decimal enum fractions functools heapq io "
    "itertools json math operator random re string typing"
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
    serving.Server(channel, role, Zygote(role)).serve()


class Zygote:
    """Forks the process of each run; as pid 1 of its namespace it can end all there is in it."""

    def __init__(self, role: str) -> None:
        self._is_tester = role == "tester"
        self._filter = seccomp.filter_program(linux.MACHINE)
        self._exams: dict[str, tester.Exam] = {}

    def start(self, run: dict[str, Any], file: int, places: child.Places) -> int:
        """See `serving.Starter`."""
        exam = self._exam(run, file) if self._is_tester else None
        pid = os.fork()
        if pid != 0:
            return pid
        try:
            body, stdin = _program(run, file) if exam is None else (functools.partial(tester.run, exam), "")
            child.arrange_descriptors(places)

            def limits() -> None:
                child.give_stdin(stdin)
                child.take_limits(run["seconds"], run["memory_mb"], threads=True)
                linux.install_filter(self._filter)

            child.set_up(limits)
            child.run(body)
        finally:
            os._exit(1)

    def end(self, pid: int) -> None:
        """See `serving.Starter`."""
        assert os.getpid() == 1  # of a namespace of its own: elsewhere, -1 would mean everybody
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        os.waitpid(pid, 0)

    def _exam(self, run: dict[str, Any], file: int) -> tester.Exam:
        """The tests of a run, compiled once for all programs."""
        exam = self._exams.pop(run["exam"], None) or tester.compiled(child.read_json(file, run["at"]))
        self._exams[run["exam"]] = exam
        if len(self._exams) > _MAX_EXAMS:
            del self._exams[next(iter(self._exams))]
        return exam


def _program(run: dict[str, Any], file: int) -> tuple[Callable[[], bool], str]:
    job = child.read_json(file, run["at"])
    return functools.partial(solution.run, job), job.get("stdin", "")


if __name__ == "__main__":
    main()
