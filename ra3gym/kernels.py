"""Compile kernels with numba, and keep the compiled code on disk where there is a place for it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def njit(**options: Any) -> Callable[[F], F]:
    """Return numba's decorator `njit` with these options and a cache on disk.

    The cache lies where numba puts it: in the folder of the environment variable NUMBA_CACHE_DIR, beside the source, or
    below the home. Without such a place, as in a container with a read-only package and no home, it lies in the
    system's temporary folder. Without that too, each process compiles anew.
    """

    def compiled(function: F) -> F:
        try:
            return _cached(function, options)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
        folder = _private_folder()
        if folder is None:
            kernel: F = numba.njit(**options)(function)
            return kernel
        config: Any = numba.config
        own = config.CACHE_DIR
        config.CACHE_DIR = str(folder)
        try:
            return _cached(function, options)
        finally:
            config.CACHE_DIR = own

    return compiled


def _cached(function: F, options: dict[str, Any]) -> F:
    kernel: F = numba.njit(cache=True, **options)(function)
    return kernel


def _private_folder() -> Path | None:
    """Return this user's folder for compiled code below the temporary folder; `None` when it cannot be trusted.

    Compiled code is loaded without a question, so nobody else may write there.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"ra3gym-numba-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:  # no temporary folder that can be written
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if private else None
