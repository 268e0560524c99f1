"""How tests in one process call the program in another: one JSON line each way, over a socket.

The tests ask `[kind, target, args, kwargs]`: to "call" the target, to "get" or "set" an attribute of it, or for its
"truth". A target is a name of the program's or the number of an object that it gave out before. The program answers
`["value", value, changed]`, where `changed` holds `[position, value]` of arguments that the call changed in place, or
`["raise", names, text]` with the names of an exception's classes, its own first. First of all it says which of the
names asked for it defines.
"""

from __future__ import annotations

import os

MAX_LINE = 256 << 20


class Gone(BaseException):
    """The other side ended, or does not keep to the form. No `Exception`: no test may catch it."""


class TooLong(Gone):
    """The other side sent a line longer than `MAX_LINE`."""


class Line:
    """The socket's own side: whole lines of text out and in."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = bytearray()

    def send(self, text: str) -> None:
        """Write one line; `Gone` when nobody reads."""
        data = memoryview(text.encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise Gone(str(error)) from None

    def receive(self) -> str | None:
        """The next line, `None` at the end; `Gone` when it is not text, `TooLong` when there is no end to it."""
        searched = 0
        while (end := self._read.find(b"\n", searched)) < 0:
            searched = len(self._read)
            if searched > MAX_LINE:
                raise TooLong("a value is too large")
            try:
                piece = os.read(self._descriptor, 1 << 20)
            except OSError as error:
                raise Gone(str(error)) from None
            if not piece:
                return None
            self._read += piece
        line = self._read[:end]
        del self._read[: end + 1]
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise Gone("not text") from None
