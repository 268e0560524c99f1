"""Files and folders that appear whole or not at all: a reader, or a crash, sees the old or the new one, never a part.

This is the only place in the package that replaces files. While something is being written it has a name that matches
`UNFINISHED`, beside its final place and so on the same file system.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

UNFINISHED = ".*.tmp"
"""What a killed process may leave beside its files and folders, as a glob pattern."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; it takes the place of `path` at the end, or leaves nothing after an error."""
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it has its final name, or was never written
            temporary.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder; it takes the place of the folder `path` at the end, or is removed after an error.

    Missing parents are made. A folder that stood at `path` is removed once the new one is there.
    """
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    old = _temporary(path.with_name(f"{path.name}.old"))
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not path.exists() and old.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing_text(path: Path) -> Iterator[TextIO]:
    """Yield a UTF-8 text file that takes the place of `path` at the end; compressed if `path` ends in ".gz"."""
    with replacing(path) as temporary:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(temporary, "wt", encoding="utf-8") as file:
            yield file


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
    """Remove what killed processes left half written anywhere below `folder`."""
    for unfinished in list(folder.rglob(UNFINISHED)):
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _jsonable(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form")
