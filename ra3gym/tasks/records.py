"""Records of a data set with their places, so that an error can name file, line and field."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ra3gym.errors import DataError

T = TypeVar("T")

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")

INPUT_ENCODING = "utf-8-sig"
"""Of text files that users give: UTF-8, with or without the byte order mark that editors on Windows write."""


@dataclass(frozen=True)
class Record:
    """The fields of one problem.

    Attributes:
        place: where the record is from, for errors: "FILE, line 3".
        fields: the record's content; a field of `None` counts as missing.
    """

    place: str
    fields: Mapping[str, Any]

    def __contains__(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        """Return the string in field `name`, or the default; `DataError` if there is neither."""
        return self._typed(name, str, "a string", default)

    def items(self, name: str, default: list[Any] | None = None) -> list[Any]:
        """Return the list in field `name`; see `text`."""
        return self._typed(name, list, "a list", default)

    def texts(self, name: str, default: list[Any] | None = None) -> list[str]:
        """Return the list of strings in field `name`; see `text`."""
        items = self.items(name, default)
        for position, item in enumerate(items):
            if not isinstance(item, str):
                raise self.wrong(name, f"item {position} must be a string, got {type(item).__name__}")
        return items

    def wrong(self, name: str, complaint: str) -> DataError:
        """Return an error about field `name`, to be raised."""
        return DataError(f"{self.place}: field {name!r}: {complaint}")

    def _typed(self, name: str, kind: type[T], described: str, default: T | None) -> T:
        value = self.fields.get(name)
        if value is None:
            if default is not None:
                return default
            raise DataError(f"{self.place}: field {name!r} is missing; the record has {', '.join(self.fields)}")
        if not isinstance(value, kind):
            raise self.wrong(name, f"must be {described}, got {type(value).__name__}")
        return value


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a .jsonl, .jsonl.gz, .json (one list) or .parquet file; only .json is read at once.

    Raises:
        DataError: there is no such file, it has another suffix, or a line is not a JSON object.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(path)
    elif path.suffix == ".json":
        yield from _json_list(path)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    else:
        raise DataError(f"{path}: unknown kind of file; known: {', '.join(SUFFIXES)}")


def _json_lines(path: Path) -> Iterator[Record]:
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding=INPUT_ENCODING) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    place = f"{path}, line {number}"
                    yield Record(place, _json_object(line, place))
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path}, after line {number}", error) from None
    except (OSError, EOFError) as error:  # not gzip, or cut off
        raise DataError(f"{path}, after line {number}: cannot be read: {error}") from None


def _json_list(path: Path) -> Iterator[Record]:
    try:
        rows = json.loads(path.read_text(encoding=INPUT_ENCODING))
    except UnicodeDecodeError as error:
        raise _not_utf8(str(path), error) from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: must hold a list of objects, got {type(rows).__name__}")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, item {index}: must be an object, got {type(row).__name__}")
        yield Record(f"{path}, item {index}", row)


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file: {error}") from None
    index = 0
    for batch in file.iter_batches(batch_size=64):
        for row in batch.to_pylist():
            yield Record(f"{path}, row {index}", row)
            index += 1


def _not_utf8(place: str, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{place}: cannot be read as UTF-8: {error}; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8` converts what "
        "PowerShell writes)"
    )


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: must be a JSON object, got {type(row).__name__}")
    return row
