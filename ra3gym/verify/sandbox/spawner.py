"""Plain processes instead of a zygote: a fresh interpreter for every run, for machines without namespaces.

Started like `zygote.py`. It forks from nothing and shuts in nothing: `single.py` takes its own limits.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ra3gym.verify.sandbox import child, serving
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import child
    import serving

_SINGLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "single.py")
_FLAGS = ("-s", "-P", "-S", "-B")  # as isolated as -I, which would ignore PYTHONHASHSEED: verdicts repeat


class Spawner:
    """Starts an interpreter for each run, the leader of a process group."""

    def __init__(self, role: str) -> None:
        self._role = role

    def start(self, run: dict[str, Any], file: int, places: child.Places) -> int:
        """See `serving.Starter`."""
        arguments = json.dumps({"role": self._role, "run": run, "places": places, "file": file})
        for descriptor in (file, *places):
            if descriptor is not None:
                os.set_inheritable(descriptor, True)
        command = [sys.executable, *_FLAGS, _SINGLE, arguments]
        return os.posix_spawn(sys.executable, command, dict(os.environ), setsid=True)

    def end(self, pid: int) -> None:
        """See `serving.Starter`."""
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _channel, _role = serving.connect()
    serving.Server(_channel, _role, Spawner(_role)).serve()
