"""`load_tasks`: one way to every set of problems, by name or by file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, overload

from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.tasks.public.benchmarks import BENCHMARKS
from ra3gym.tasks.public.functions import own
from ra3gym.tasks.records import SUFFIXES, read_records
from ra3gym.tasks.task import CodeTask

_FILE = "jsonl:"
_DOCTEST = "doctest:"


@overload
def load_tasks(
    name_or_path: str | Path,
    *,
    split: str | None = None,
    path: str | Path | None = None,
    limit: int | None = None,
    streaming: Literal[False] = False,
    **options: Any,
) -> Sequence[CodeTask]: ...


@overload
def load_tasks(
    name_or_path: str | Path,
    *,
    split: str | None = None,
    path: str | Path | None = None,
    limit: int | None = None,
    streaming: Literal[True],
    **options: Any,
) -> Iterator[CodeTask]: ...


def load_tasks(
    name_or_path: str | Path,
    *,
    split: str | None = None,
    path: str | Path | None = None,
    limit: int | None = None,
    streaming: bool = False,
    **options: Any,
) -> Sequence[CodeTask] | Iterator[CodeTask]:
    """The tasks of a benchmark, of the embedded domain, of a package's doctests or of a file.

    Args:
        name_or_path: `idioms`; `humaneval`, `humaneval+`, `mbpp`, `mbpp-sanitized`, `mbpp+`, `livecodebench`,
            `codeforces`, `acecode`; `doctest:PACKAGE` for the functions of an installed package whose doctests decide;
            `jsonl:FILE`, or just a path, for your own (.jsonl, .jsonl.gz, .json or .parquet).
        split: one split of the set; `None` takes all of a benchmark, and the domain's evaluation split.
        path: a file in the benchmark's own format, or a folder that holds it. Without it the folder that the
            environment variable `RA3GYM_DATA` names is searched, and then the Hugging Face hub asked.
        limit: at most so many tasks, from the first; at least 1.
        streaming: give an iterator that reads one task at a time, for a corpus that does not fit in memory.
        options: of the embedded domain (its `seed`, say) only.

    Raises:
        UnknownNameError: no such set, or no such split of it.
        DataError: data that is missing, empty or malformed; the message names the file, the line and the field.
            When streaming, it is raised on reaching the line.
        ConfigError: `limit < 1`, or an option, path or split that the set does not take.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    tasks = _not_empty(name_or_path, islice(_tasks(str(name_or_path), split, path, streaming, options), limit))
    return tasks if streaming else tuple(tasks)


def _tasks(
    name: str, split: str | None, path: str | Path | None, streaming: bool, options: dict[str, Any]
) -> Iterator[CodeTask]:
    if name == "idioms":
        _refuse(name, path=path)
        from ra3gym.tasks import idioms

        if split is not None:
            options = {"split": split, **options}
        return iter(idioms.load_tasks(**options))
    _refuse(name, **options)
    if name in BENCHMARKS:
        return BENCHMARKS[name].tasks(split=split, path=None if path is None else Path(path), streaming=streaming)
    _refuse(name, split=split, path=path)
    if name.startswith(_DOCTEST):
        from ra3gym.tasks.doctests.tasks import doctest_tasks

        return doctest_tasks(name.removeprefix(_DOCTEST))
    if name.startswith(_FILE) or name.endswith(SUFFIXES):
        return _own_tasks(Path(name.removeprefix(_FILE)))
    known = ["idioms", *BENCHMARKS, "doctest:PACKAGE", "jsonl:FILE"]
    raise UnknownNameError("task set", name, known)


def _own_tasks(file: Path) -> Iterator[CodeTask]:
    return (replace(own(record), source=str(file)) for record in read_records(file))


def _not_empty(name: object, tasks: Iterator[CodeTask]) -> Iterator[CodeTask]:
    first = next(tasks, None)
    if first is None:
        raise DataError(f"{str(name)!r} holds no tasks")
    return chain([first], tasks)


def _refuse(name: str, **given: object) -> None:
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"task set {name!r} takes no {option!r} (got {value!r})")
