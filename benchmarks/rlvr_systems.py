"""A system of `rlvr.py` at work in a process of its own, one step at a time."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from rlvr_cases import Case, Pacer, set_threads

Row = dict[str, Any]


class SystemEndedError(Exception):
    """The process of a system ended before its work was done; the message has its traceback."""


class Running:
    """A system that works on a case in a process of its own, one step at a time."""

    def __init__(self, system: Callable[..., None], case: Case, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        target = (system, case, theirs, arguments)
        self._process = context.Process(target=_at_work, args=target, name=system.__name__, daemon=True)
        self._process.start()
        theirs.close()
        self.memory_mb: float | None = self._receive()["memory_mb"]

    def step(self) -> Row:
        """Run the next step; return its measurements."""
        self._connection.send("go")
        return self._receive()

    def close(self) -> None:
        """End the process at once."""
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def _receive(self) -> Row:
        try:
            found: Row = self._connection.recv()
        except EOFError:  # killed, say for its memory
            self._process.join()
            found = {"error": f"ended with exit code {self._process.exitcode}"}
        if "error" in found:
            raise SystemEndedError(f"{self._process.name}: {found['error']}")
        return found


def _at_work(system: Callable[..., None], case: Case, connection: Connection, arguments: Sequence[Any]) -> None:
    set_threads(case.threads)
    try:
        system(case, Pacer(connection, case.device), *arguments)
    except Exception:  # of any kind: the script decides whether it can continue without this system
        with suppress(BrokenPipeError):  # nobody there any more
            connection.send({"error": traceback.format_exc()})
