"""An audit hook that keeps an honest program from accidental harm, for kernels without seccomp.

It does not stop a hostile program: it covers neither native code nor reading files.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_FILES = ("remove", "rmdir", "rename", "truncate", "mkdir", "link", "symlink", "chmod", "chown", "utime")
_PROCESSES = ("fork", "forkpty", "exec", "posix_spawn", "spawn", "system", "kill", "killpg")
_FORBIDDEN = frozenset(
    [f"os.{event}" for event in _FILES + _PROCESSES]
    + ["shutil.copyfile", "shutil.move", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp"]
    + ["pty.spawn", "signal.pthread_kill", "subprocess.Popen"]
    + ["ctypes.dlopen", "socket.__new__", "socket.bind", "socket.connect"]
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install() -> None:
    """Refuse, permanently, to start processes, open sockets, send signals and change files."""
    forbidden, writing, refuse = _FORBIDDEN, _WRITING, PermissionError

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in forbidden:
            raise refuse(f"{event} is not allowed here")
        if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & writing:
            raise refuse(f"opening {arguments[0]!r} for writing is not allowed here")

    sys.addaudithook(hook)
