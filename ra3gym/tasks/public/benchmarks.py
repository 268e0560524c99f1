"""The public benchmarks: where their records come from (a folder, a file, the Hugging Face hub) and their licenses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ra3gym.errors import DataError, UnknownNameError
from ra3gym.tasks.public import contests, functions
from ra3gym.tasks.records import SUFFIXES, Record, read_records
from ra3gym.tasks.task import CodeTask

DATA_FOLDER_VARIABLE = "RA3GYM_DATA"
# EvalPlus' tests have up to a thousand inputs for a task, some of them heavy.
_EVALPLUS_SECONDS, _EVALPLUS_MEMORY_MB = 60.0, 4096


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: what `load_tasks` calls it.
        convert: from a record to a task, or `None` for a problem that cannot be graded.
        hub: its repository on the Hugging Face hub.
        license: of the data set.
        files: glob patterns below a data folder; the first one with a match counts.
        config: the configuration to load from the hub.
        splits: the hub's names of its splits.
        in_split: whether a record belongs to a split, if one local file holds all splits. Otherwise the name of a file
            begins with the name of its split.
        hub_files: files in the hub's repository to read instead of its splits.
        seconds: CPU time that the tests of a task need, if it is more than the judge gives by default and the record of
            the task does not say it.
        memory_mb: address space, alike.
    """

    name: str
    convert: Callable[[Record], CodeTask | None]
    hub: str
    license: str
    files: tuple[str, ...]
    config: str | None = None
    splits: tuple[str, ...] = ("test",)
    in_split: Callable[[Record, str], bool] | None = None
    hub_files: tuple[str, ...] = ()
    seconds: float | None = None
    memory_mb: int | None = None

    def tasks(self, *, split: str | None, path: Path | None, streaming: bool) -> Iterator[CodeTask]:
        """Yield the tasks of `split` (all when `None`) from `path`, else from the data folder, else from the hub."""
        if split is not None and split not in self.splits:
            raise UnknownNameError(f"split of {self.name!r}", split, self.splits)
        for record in self._records(split, path, streaming):
            if split is not None and self.in_split is not None and not self.in_split(record, split):
                continue
            task = self.convert(record)
            if task is not None:
                seconds = self.seconds if task.seconds is None else task.seconds
                memory_mb = self.memory_mb if task.memory_mb is None else task.memory_mb
                yield replace(task, source=self.hub, license=self.license, seconds=seconds, memory_mb=memory_mb)

    def _records(self, split: str | None, path: Path | None, streaming: bool) -> Iterator[Record]:
        files = self._local_files(split, path)
        if files:
            return chain.from_iterable(read_records(file) for file in files)
        if self.hub_files:
            return chain.from_iterable(read_records(_fetched(self, name)) for name in self.hub_files)
        return chain.from_iterable(_hub_rows(self, each, streaming) for each in ([split] if split else self.splits))

    def _local_files(self, split: str | None, path: Path | None) -> list[Path]:
        """Return the files to read; an empty list means the hub."""
        if path is not None:
            if not path.is_dir():
                return [path]
            found = self._found(split, path, [*self.files, *(pattern.rpartition("/")[2] for pattern in self.files)])
            if not found:
                raise DataError(f"{path} holds no file of {self.name!r}; looked for {', '.join(self.files)}")
            return found
        folder = os.environ.get(DATA_FOLDER_VARIABLE)
        if not folder:
            return []
        if not Path(folder).is_dir():
            raise DataError(f"{DATA_FOLDER_VARIABLE}={folder} is not a folder")
        return self._found(split, Path(folder), self.files)

    def _found(self, split: str | None, folder: Path, patterns: Iterable[str]) -> list[Path]:
        several = len(self.splits) > 1 and self.in_split is None
        for pattern in patterns:
            found = [file for file in sorted(folder.glob(pattern)) if file.name.endswith(SUFFIXES)]
            if several and split is not None:
                found = [file for file in found if file.name.startswith(split)]
            if found:
                return found
        return []


def _hub_rows(benchmark: Benchmark, split: str, streaming: bool) -> Iterator[Record]:
    import datasets

    try:
        rows: Any = datasets.load_dataset(benchmark.hub, benchmark.config, split=split, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(benchmark, error) from error
    for index, row in enumerate(rows):
        yield Record(f"{benchmark.hub}, {split} row {index}", row)


def _fetched(benchmark: Benchmark, name: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(benchmark.hub, name, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise _unreachable(benchmark, error) from error


def _unreachable(benchmark: Benchmark, error: BaseException) -> DataError:
    return DataError(
        f"cannot get {benchmark.name!r} from the hub ({benchmark.hub}): {error}. Give path=FILE, or set "
        f"{DATA_FOLDER_VARIABLE} to a folder that holds {' or '.join(benchmark.files)}"
    )


# The split of an MBPP problem by its number (Austin et al. 2021).
_MBPP_SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}


def _in_mbpp_split(record: Record, split: str) -> bool:
    number = str(record.fields.get("task_id")).removeprefix("Mbpp/")
    if not number.isdecimal():
        raise record.wrong("task_id", f"must be the problem's number, got {record.fields.get('task_id')!r}")
    return int(number) in _MBPP_SPLITS[split]


_MBPP = Benchmark(
    name="mbpp",
    convert=functions.mbpp,
    hub="google-research-datasets/mbpp",
    config="full",
    license="CC-BY-4.0",
    files=("mbpp/mbpp.jsonl*", "mbpp.jsonl*"),
    splits=tuple(_MBPP_SPLITS),
    in_split=_in_mbpp_split,
)
_MBPP_SANITIZED = replace(
    _MBPP,
    name="mbpp-sanitized",
    config="sanitized",
    files=("mbpp/sanitized-mbpp.json*", "sanitized-mbpp.json*"),
)

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="humaneval",
            convert=functions.humaneval,
            hub="openai/openai_humaneval",
            license="MIT",
            files=("humaneval/HumanEval.jsonl*", "HumanEval.jsonl*"),
        ),
        Benchmark(
            name="humaneval+",
            convert=functions.humaneval,
            hub="evalplus/humanevalplus",
            license="Apache-2.0",
            files=("humanevalplus/HumanEvalPlus-OriginFmt.jsonl*", "HumanEvalPlus-OriginFmt.jsonl*"),
            seconds=_EVALPLUS_SECONDS,
            memory_mb=_EVALPLUS_MEMORY_MB,
        ),
        _MBPP,
        _MBPP_SANITIZED,
        Benchmark(
            name="mbpp+",
            convert=functions.mbpp_plus,
            hub="evalplus/mbppplus",
            license="Apache-2.0",
            files=("mbppplus/MbppPlus-OriginFmt.jsonl*", "MbppPlus-OriginFmt.jsonl*"),
            seconds=_EVALPLUS_SECONDS,
            memory_mb=_EVALPLUS_MEMORY_MB,
        ),
        Benchmark(
            name="livecodebench",
            convert=contests.livecodebench,
            hub="livecodebench/code_generation_lite",
            license="CC",
            files=("livecodebench/*.jsonl*", "livecodebench/**/*.parquet"),
            hub_files=("test.jsonl", *(f"test{number}.jsonl" for number in range(2, 7))),  # all releases
        ),
        Benchmark(
            name="codeforces",
            convert=contests.codeforces,
            hub="open-r1/codeforces",
            license="CC-BY-4.0",
            files=("codeforces/*.jsonl*", "codeforces/**/*.parquet"),
            splits=("train", "test"),
        ),
        Benchmark(
            name="acecode",
            convert=functions.acecode,
            hub="TIGER-Lab/AceCode-87K",
            license="MIT",
            files=("acecode/*.jsonl*", "acecode/**/*.parquet"),
            splits=("train",),
        ),
    )
}
