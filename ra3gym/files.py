"""Files and folders that appear whole or not at all: a reader, or a crash, sees the old one or the new one.

This is the only place in the package that replaces files. While something is being written it has a name that matches
`UNFINISHED`, next to its final place and so on the same file system.
"""

from __future__ import annotations

import ctypes
import errno
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from ra3gym.errors import OutputError

NOT_WRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ENOTDIR}
)
"""Numbers of `OSError`s that say that a place cannot be written to."""

UNFINISHED = ".*.tmp"
"""Glob pattern of what a killed process may leave next to its files and folders."""

_REPLACED = ".*.replaced"
"""Folders that make room for a new one, on systems that cannot swap two folders in one step."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LEAST_FREE = 1 << 16
"""Bytes that must be free for anything to be written."""


def check_writable(folder: Path) -> None:
    """Raise `OutputError` unless a file can be written in `folder`, or where it would be made; nothing stays there."""
    with reporting_output(folder):
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_LEAST_FREE))
            probe.flush()
            os.fsync(probe.fileno())


@contextmanager
def reporting_output(path: Path) -> Iterator[None]:
    """Raise `OutputError`, which names `path`, for an error of the system that says that it cannot be written."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        # Either of the two may be relative to the current folder.
        of_file = Path(error.filename).absolute() if isinstance(error.filename, str) else None
        elsewhere = of_file is not None and path.absolute().parent not in of_file.parents
        if error.errno not in NOT_WRITABLE or elsewhere:
            raise
        raise _not_written(path, error.strerror or str(error)) from error


@contextmanager
def replacing(path: Path, *, salvage: bool = False) -> Iterator[Path]:
    """Yield a path to write a file to; it takes the place of `path` at the end, or leaves nothing after an error.

    With `salvage`, what was written before an `OutputError` stays as `NAME.part`, which the error then names.
    """
    temporary = _temporary(path)
    try:
        with reporting_output(path):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
    except OutputError as error:
        if not salvage or not temporary.exists():
            raise
        part = path.with_name(f"{path.name}.part")
        os.replace(temporary, part)
        raise OutputError(f"{error}. What was written until then is in {part}") from error
    finally:
        with suppress(OSError):  # it has its final name, or was never written
            temporary.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder; it takes the place of the folder `path` at the end, or is removed after an error.

    Missing parents are made. If the process is killed, `path` is the old folder or the new one; `remove_unfinished`
    clears up the rest (and on systems without an atomic swap it may have to put the old folder back).
    """
    fresh = _temporary(path)
    try:
        with reporting_output(path):
            _restore(_replaced(path))
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            yield fresh
            if not path.exists():
                fresh.rename(path)
            elif not _swap(fresh, path):
                path.rename(_replaced(path))
                fresh.rename(path)
    except OutputError:
        raise
    except Exception as error:
        if not _is_full(fresh):
            raise
        # torch and safetensors have errors of their own for a full disk.
        raise _not_written(path, os.strerror(errno.ENOSPC)) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # after a swap, this is the old folder
        _restore(_replaced(path))


@contextmanager
def replacing_text(path: Path, *, salvage: bool = False) -> Iterator[TextIO]:
    """Yield a UTF-8 text file that takes the place of `path` at the end; compressed if `path` ends in ".gz".

    See `replacing` for `salvage`.
    """
    with replacing(path, salvage=salvage) as temporary:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(temporary, "wt", encoding="utf-8") as file:
            yield file


@contextmanager
def completing_text(path: Path) -> Iterator[TextIO]:
    """Yield a new UTF-8 text file, `NAME.part`, that is renamed to `path` at the end.

    After an error the part that was written stays, for files whose beginning is of use. `FileExistsError` when there
    is a part already.
    """
    part = path.with_name(f"{path.name}.part")
    with reporting_output(path):
        with part.open("x", encoding="utf-8") as file:
            yield file
        os.replace(part, path)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, whole or not at all; text is UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write strict, indented JSON to `path`, whole or not at all; `ValueError` for NaN and infinities."""
    write_atomic(path, to_json(content) + "\n")


def to_json(content: Any) -> str:
    """Return strict, indented JSON; paths become strings, sets sorted lists. `ValueError` for NaN and infinities."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_jsonable)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half written anywhere below `folder`, and put back what they had set aside."""
    for unfinished in list(folder.rglob(UNFINISHED)):
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
    for replaced in list(folder.rglob(_REPLACED)):
        _restore(replaced)


def _not_written(path: Path, reason: str) -> OutputError:
    return OutputError(f"cannot write {path}: {reason}; make room there, or choose another place")


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _LEAST_FREE
    except OSError:
        return False


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def _restore(replaced: Path) -> None:
    """Give a folder that was set aside its name back, or remove it when its successor is there."""
    path = replaced.with_name(replaced.name.removeprefix(".").removesuffix(".replaced"))
    if replaced.is_dir() and not path.exists():
        replaced.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Swap two folders in one step; false where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _jsonable(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form")
