"""Plain processes instead of a zygote: a fresh interpreter for every run, for machines without namespaces.

`start.py` starts it as it does `zygote`. It isolates nothing itself: `interpreter` takes the limits of its own run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any

from . import child, server

_START = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")
_FLAGS = ("-s", "-P", "-S", "-B")  # as isolated as -I, which would ignore PYTHONHASHSEED: verdicts repeat


class Spawner:
    """Starts an interpreter for each run, the leader of a process group."""

    def __init__(self, role: str) -> None:
        self._role = role

    def start(self, run: dict[str, Any], file: int, descriptors: child.Descriptors) -> int:
        """See `server.Starter`."""
        argument = json.dumps({"role": self._role, "run": run, "descriptors": descriptors, "file": file})
        for descriptor in (file, *descriptors):
            if descriptor is not None:
                os.set_inheritable(descriptor, True)
        command = [sys.executable, *_FLAGS, _START, "interpreter", argument]
        return os.posix_spawn(sys.executable, command, dict(os.environ), setsid=True)

    def end(self, pid: int) -> None:
        """See `server.Starter`."""
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def main(role: str) -> None:
    """Serve batches until the judge closes the channel."""
    server.Server(server.connect(), role, Spawner(role)).serve()
