"""Files that appear whole or not at all: a reader, or a crash, sees the old one or the new one, never a part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

UNFINISHED = ".*.tmp"
"""What a killed process may leave beside its files, as a glob pattern."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path` and so on its file system; it takes the place of `path` at the end.

    After an error, or Ctrl-C, nothing of it is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it is not there any more, or never was
            temporary.unlink()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`, whole or not at all; text is UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """`write_atomic` of strict, indented JSON; `ValueError` for NaN and infinities."""
    write_atomic(path, to_json(content) + "\n")


def to_json(content: Any) -> str:
    """Strict, indented JSON; paths are texts, sets sorted lists. `ValueError` for NaN and infinities."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=_jsonable)


def _jsonable(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no JSON form")
