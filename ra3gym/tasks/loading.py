"""`load_tasks`: one way to every set of problems, by name or by file. `register_tasks` adds a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, overload

from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.plugins import Registry
from ra3gym.tasks.idioms import idioms_tasks
from ra3gym.tasks.public.benchmarks import BENCHMARKS
from ra3gym.tasks.public.functions import own
from ra3gym.tasks.records import SUFFIXES, read_records
from ra3gym.tasks.task import CodeTask

TaskLoader = Callable[..., Iterable[CodeTask]]
"""Returns the tasks of a set. Its parameters are the options that it takes: `split`, `path`, or others."""

_FILE = "jsonl:"
_DOCTEST = "doctest:"
_REGISTER_WITH = "ra3gym.tasks.register_tasks(name, loader)"

_LOADERS: Registry[TaskLoader] = Registry("task set", _REGISTER_WITH, {"idioms": idioms_tasks})


def register_tasks(name: str, loader: TaskLoader) -> None:
    """Make the tasks of `loader` available as `load_tasks(name)`, in every command and environment.

    Args:
        name: replaces a set of the same name.
        loader: called with the options that the user gave, `split` and `path` included, for example
            `loader(split="train")`. An option that is not among its parameters raises a `ConfigError`.
    """
    _LOADERS.register(name, loader)


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
    """Return the tasks of a benchmark, of the embedded domain, of a package's doctests or of a file.

    Args:
        name_or_path: `idioms`; `humaneval`, `humaneval+`, `mbpp`, `mbpp-sanitized`, `mbpp+`, `livecodebench`,
            `codeforces`, `acecode`; the name of a set that was registered with `register_tasks`; `doctest:PACKAGE` for
            functions of an installed package with their doctests as tests; `jsonl:FILE`, or a path, for your own
            (.jsonl, .jsonl.gz, .json or .parquet).
        split: one split of the set. `None` takes all of a benchmark, and the evaluation split of the domain.
        path: a file in the benchmark's own format, or a folder that holds it. Without it the tasks come from the folder
            in the environment variable `RA3GYM_DATA`, or else from the Hugging Face hub.
        limit: return only the first `limit` tasks; at least 1.
        streaming: return an iterator that reads one task at a time, for a corpus that does not fit in memory.
        options: further options of the set, such as the `seed` of the embedded domain.

    Raises:
        UnknownNameError: there is no such set, or it has no such split.
        DataError: data is missing, empty or malformed; the message names the file, the line and the field. A stream
            raises it when it reaches the line.
        ConfigError: `limit < 1`, or an option, path or split that the set does not take.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    tasks = _not_empty(name_or_path, islice(_tasks(str(name_or_path), split, path, streaming, options), limit))
    return tasks if streaming else tuple(tasks)


def _tasks(
    name: str, split: str | None, path: str | Path | None, streaming: bool, options: dict[str, Any]
) -> Iterator[CodeTask]:
    if name in _LOADERS:
        given = {"split": split, "path": path, **options}
        return _loaded(name, _LOADERS[name], {option: value for option, value in given.items() if value is not None})
    _refuse(name, **options)
    if name in BENCHMARKS:
        return BENCHMARKS[name].tasks(split=split, path=None if path is None else Path(path), streaming=streaming)
    _refuse(name, split=split, path=path)
    if name.startswith(_DOCTEST):
        from ra3gym.tasks.doctests.tasks import doctest_tasks

        return doctest_tasks(name.removeprefix(_DOCTEST))
    if name.startswith(_FILE) or name.endswith(SUFFIXES):
        return _own_tasks(Path(name.removeprefix(_FILE)))
    known = [*_LOADERS, *BENCHMARKS, "doctest:PACKAGE", "jsonl:FILE"]
    raise UnknownNameError("task set", name, known, f"Add your own with {_REGISTER_WITH}.")


def _loaded(name: str, loader: TaskLoader, options: dict[str, Any]) -> Iterator[CodeTask]:
    try:
        inspect.signature(loader).bind(**options)
    except TypeError as error:
        raise ConfigError(f"task set {name!r} does not take these options: {error}") from None
    return iter(loader(**options))


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
