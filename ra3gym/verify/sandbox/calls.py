"""How tests in one process call the program in another: one JSON line each way, over a socket.

The program's first line lists which of the names that the tests use it defines. Then the tests send requests
`[kind, target, args, kwargs]`: "call" the target, "get" or "set" an attribute of it, ask for its "truth", its length
("len"), one of its items ("item") or all of them ("iter"). A target is a name that the program defines, or the number
of an object that it returned earlier.

The program answers `["value", value, changed]`, where `changed` holds `[position or keyword, value]` of the arguments
that the call changed in place, or `["raise", names, text]` with the names of an exception's classes, from its own to
its bases. An object in a value is `[number, name of its type, abilities]`: which of "len", "item" and "iter" it has.
"""

from __future__ import annotations

import os

MAX_LINE = 256 << 20


class Gone(BaseException):
    """The other process ended, or sent something else than a message. No `Exception`, so that no test catches it."""


class TooLong(Gone):
    """The other process sent a line longer than `MAX_LINE`."""


class Connection:
    """One end of the socket: sends and receives whole lines of text."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unread = bytearray()

    def send(self, text: str) -> None:
        """Write one line; `Gone` when nobody reads."""
        data = memoryview(text.encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise Gone(str(error)) from None

    def receive(self) -> str | None:
        """Return the next line, `None` at the end; `Gone` when it is not text, `TooLong` when it does not end."""
        searched = 0
        while (end := self._unread.find(b"\n", searched)) < 0:
            searched = len(self._unread)
            if searched > MAX_LINE:
                raise TooLong("a value is too large")
            try:
                piece = os.read(self._descriptor, 1 << 20)
            except OSError as error:
                raise Gone(str(error)) from None
            if not piece:
                return None
            self._unread += piece
        line = self._unread[:end]
        del self._unread[: end + 1]
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise Gone("not text") from None
