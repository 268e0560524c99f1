"""Start fresh interpreters, which programs and examples run in: they see nothing of the user's settings."""

from __future__ import annotations

import os
import subprocess
import sys

ISOLATED = ("-s", "-P", "-S", "-B")
"""Flags of a fresh interpreter: as isolated as `-I`, which would ignore PYTHONHASHSEED too."""

_KEPT = ("PYTHONHOME",)
_KEPT_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_START_SECONDS = 30.0


def fresh_environment(hash_seed: int = 0) -> dict[str, str]:
    """Return the environment of a fresh interpreter.

    It holds two settings of Python, and what some Pythons need to start at all: where their shared libraries are (as
    for those of cluster modules and of GitHub's setup-python) and where their standard library is.

    Args:
        hash_seed: of strings; the same seed gives sets of strings the same order.
    """
    kept = {name: os.environ[name] for name in _KEPT if os.environ.get(name)}
    for name in _KEPT_PATHS:
        if folders := os.environ.get(name):  # a relative folder has no meaning in another working folder
            kept[name] = os.pathsep.join(map(os.path.abspath, folders.split(os.pathsep)))
    return {"PYTHONHASHSEED": str(hash_seed), "PYTHONUTF8": "1", **kept}


def why_not_started() -> str | None:
    """Start a fresh interpreter; return what it or the system says when it does not start, `None` when it does."""
    try:
        done = subprocess.run(
            [sys.executable, *ISOLATED, "-c", ""],
            env=fresh_environment(),
            cwd="/",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_START_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"exit code {done.returncode}" + (f": {lines[-1]}" if lines else "")
