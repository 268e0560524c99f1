"""Grading a file of completions: what `ra3gym judge` does.

FILE.jsonl            HumanEval's own format, one line per sample: task_id, completion
FILE_results.jsonl    the same lines in the same order, with the verdict: passed, status, message, score

The file may be larger than memory. It is read twice: all of it is checked before the first program runs, so that a
mistake in its last line costs seconds, then it is graded, a few batches ahead of what is written.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Literal, Self, TextIO

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ra3gym.errors import ConfigError, DataError
from ra3gym.experiments.report.statistics import estimate_mean
from ra3gym.files import replacing
from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.tasks.records import Record, read_records
from ra3gym.verify import Judge, Limits, Verdict, pass_at_k

BENCHMARK_LIMITS = dict.fromkeys(("humaneval+", "mbpp+"), Limits(seconds=60, memory_mb=4096))
"""What a program may use on benchmarks that need more than the default."""

_SUFFIXES = (".jsonl", ".jsonl.gz")
_BATCH_PER_WORKER = 4  # small: Ctrl-C waits for what runs, and speed is the same
_BATCHES_AHEAD = 32  # so that a slow program holds nobody up
_PLAIN_LINE_SECONDS = 30.0

Sample = tuple[Record, CodeTask, str]
"""A line of the file, its task, and the whole program that is graded."""


@dataclass(frozen=True)
class JudgingConfig:
    """Grade a file of completions: run each task's tests on them, write the verdicts, estimate pass@k."""

    file: tyro.conf.Positional[Path]
    """A .jsonl or .jsonl.gz file. A line is {"task_id", "completion"}, as HumanEval has it, graded as it stands behind
    the task's prompt, or {"task_id", "solution"}, a whole program, as EvalPlus has it. Of both, the solution counts."""
    tasks: str
    """What the completions solve: humaneval, humaneval+, mbpp, mbpp-sanitized, mbpp+, livecodebench, codeforces,
    acecode, idioms, doctest:PACKAGE, or a file of your own (jsonl:FILE)."""
    split: str | None = None
    """One split of the tasks; all of a benchmark when left out, and the evaluation split of idioms."""
    path: Path | None = None
    """A file in the benchmark's own format, or a folder that holds it; else the folder that the environment variable
    RA3GYM_DATA names, else the Hugging Face hub."""
    k: tuple[int, ...] = (1, 10, 100)
    """The k of pass@k, separated by commas; those that a task has too few samples for are left out."""
    workers: int = 2
    """Processes that run programs in parallel: the cores you can spare."""
    seconds: float | None = None
    """Wall-clock seconds that one program may run; 60 for humaneval+ and mbpp+, else 4."""
    memory_mb: int | None = None
    """Address space that one program may use, in MB; 4096 for humaneval+ and mbpp+, else 1024."""
    isolation: Literal["namespaces", "process", "process-as-root"] | None = None
    """How programs are kept from the rest of the machine (docs/judge.md); else as the environment variable
    RA3GYM_ISOLATION says, else namespaces. `ra3gym doctor` tells which of them work here."""
    output: Path | None = None
    """Where the verdicts go; FILE_results.jsonl beside the file when left out. Compressed if it ends in .gz."""
    overwrite: bool = False
    """Replace the output of an earlier run; without it nothing is ever overwritten."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k={self.k}: give one or several numbers of at least 1, as in --k 1,10")
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers}: give at least 1")

    @property
    def results(self) -> Path:
        """The file that the verdicts go to."""
        if self.output is not None:
            return self.output
        return self.file.with_name(self.file.name.removesuffix(".gz").removesuffix(".jsonl") + "_results.jsonl")


@dataclass
class Tally:
    """What has been graded: samples and passes by task id, samples by status, and how programs were isolated."""

    samples: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    isolations: set[str] = field(default_factory=set)

    def add(self, task: CodeTask, verdict: Verdict) -> None:
        """Count one more sample."""
        self.samples[task.task_id] += 1
        self.passes[task.task_id] += verdict.passed
        self.statuses[verdict.status] += 1
        self.isolations.add(verdict.isolation)

    def pass_at(self, k: int) -> list[float] | None:
        """pass@k of each task with samples; `None` when one of them has fewer than k."""
        if min(self.samples.values()) < k:
            return None
        estimates: list[float] = pass_at_k(
            list(self.samples.values()), [self.passes[name] for name in self.samples], k
        ).tolist()
        return estimates


def judge_file(config: JudgingConfig, console: Console) -> Tally:
    """Grade a file of completions, with progress and a table on `console`, and write the verdicts once all are there.

    Raises:
        DataError, UnknownNameError: the file, a line of it or the tasks cannot be used.
        ConfigError: a value out of range, or an output that is there already.
        SandboxUnavailable, JudgeError: this machine cannot run programs as asked; nothing is written.
    """
    limits = judge_limits(config.tasks, config.seconds, config.memory_mb)
    _check_files(config)
    tasks = tasks_by_id(load_tasks(config.tasks, split=config.split, path=config.path), config.tasks)
    with console.status(f"checking {config.file.name}"):
        total = sum(1 for _ in read_samples(config.file, tasks, config.tasks))
    if total == 0:
        raise DataError(f"{config.file} holds no samples: give one JSON object per line, with task_id and completion")
    tally = Tally()
    with (
        whole_or_nothing(config.results) as results,
        Judge(workers=config.workers, limits=limits, isolation=config.isolation) as judge,
        GradingProgress(total, console) as progress,
    ):
        samples = read_samples(config.file, tasks, config.tasks)
        for record, task, verdict in graded(samples, judge, _BATCH_PER_WORKER * config.workers):
            told = {
                "passed": verdict.passed,
                "status": verdict.status,
                "message": verdict.message,
                "score": verdict.score,
            }
            results.write(json.dumps({**record.fields, **told}) + "\n")
            tally.add(task, verdict)
            progress.add(verdict.passed)
    show_tally(tally, config, tasks, console)
    return tally


def judge_limits(tasks: str, seconds: float | None, memory_mb: int | None) -> Limits:
    """What one run of a program may use: as given, else what the benchmark needs."""
    default = BENCHMARK_LIMITS.get(tasks, Limits())
    return Limits(
        seconds=default.seconds if seconds is None else seconds,
        memory_mb=default.memory_mb if memory_mb is None else memory_mb,
    )


def tasks_by_id(tasks: Sequence[CodeTask], name: str) -> dict[str, CodeTask]:
    """The tasks by their ids; `DataError` when two share one."""
    by_id = {task.task_id: task for task in tasks}
    if len(by_id) < len(tasks):
        ((task_id, count),) = Counter(task.task_id for task in tasks).most_common(1)
        raise DataError(f"task id {task_id!r} stands {count} times in {name!r}; give each task an id of its own")
    return by_id


def read_samples(file: Path, tasks: Mapping[str, CodeTask], name: str) -> Iterator[Sample]:
    """The samples of a file, one at a time; `DataError` names file, line and field of one that cannot be graded."""
    for record in read_records(file):
        task_id = record.text("task_id")
        task = tasks.get(task_id)
        if task is None:
            close = get_close_matches(task_id, tasks, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its ids are like {next(iter(tasks))!r}"
            raise record.wrong("task_id", f"{name!r} has no task {task_id[:80]!r}; {hint}")
        if "solution" in record:
            yield record, task, record.text("solution")
        elif "completion" in record:
            yield record, task, task.prompt + record.text("completion")
        else:
            raise record.wrong(
                "completion", f"is missing, and so is 'solution'; the record has {', '.join(record.fields)}"
            )


def graded(samples: Iterable[Sample], judge: Judge, batch_size: int) -> Iterator[tuple[Record, CodeTask, Verdict]]:
    """Each sample with its verdict, in order; at most a few batches are held at once."""
    waiting: deque[tuple[list[Sample], Future[list[Verdict]]]] = deque()
    rest = iter(samples)
    while True:
        while len(waiting) < _BATCHES_AHEAD and (batch := list(islice(rest, batch_size))):
            waiting.append((batch, judge.submit([(task, program) for _, task, program in batch])))
        if not waiting:
            return
        batch, verdicts = waiting.popleft()
        for (record, task, _), verdict in zip(batch, verdicts.result(), strict=True):
            yield record, task, verdict


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[TextIO]:
    """A text file for writing that appears as `path`, in the place of what was there, only once it is complete.

    After an error, or Ctrl-C, nothing of it is left. It is compressed if `path` ends in .gz.
    """
    with replacing(path) as part:
        try:
            file: TextIO = (gzip.open if path.suffix == ".gz" else open)(part, "xt", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}; choose another place with --output") from None
        with file:
            yield file


class GradingProgress:
    """How far grading is: a live bar, or a plain line every half minute without a terminal. A context manager."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._console = console
        self._graded = self._passed = 0
        self._bar = Progress(
            TextColumn("judge"),
            BarColumn(bar_width=18),
            TextColumn("{task.fields[told]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._started = self._printed = time.monotonic()
        self._row = self._bar.add_task("", total=self._total, told="")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, passed: bool) -> None:
        """One more sample is graded."""
        self._graded += 1
        self._passed += passed
        now = time.monotonic()
        speed = self._graded / max(1e-9, now - self._started)
        told = f"{self._graded:,}/{self._total:,}  {speed:,.0f} gradings/s  {self._passed:,} passed"
        self._bar.update(self._row, completed=self._graded, told=told)
        if not self._console.is_terminal and now - self._printed >= _PLAIN_LINE_SECONDS:
            self._printed = now
            left = timedelta(seconds=round((self._total - self._graded) / speed))
            self._console.print(f"judge  {told}  ETA {left}", highlight=False, soft_wrap=True)


def show_tally(tally: Tally, config: JudgingConfig, tasks: Mapping[str, CodeTask], console: Console) -> None:
    """Print pass@k as a table, and what there is to know about samples and tasks."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    count = tally.samples.total()
    say(
        f"{config.file.name} on {config.tasks}: {count:,} samples of {len(tally.samples)} tasks; mean over tasks, 95% "
        "bootstrap interval"
    )
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("k", "pass@k %", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    fewest = min(tally.samples, key=lambda name: tally.samples[name])
    left_out = []
    for k in sorted(set(config.k)):
        values = tally.pass_at(k)
        if values is None:
            left_out.append(k)
            continue
        estimate = estimate_mean(values)
        interval = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
        table.add_row(
            str(k), f"{100 * estimate.mean:.1f}", interval if math.isfinite(estimate.low) else "one task: none"
        )
    if table.row_count:
        console.print(table)
    for k in left_out:
        short = [name for name in tally.samples if tally.samples[name] < k]
        say(
            f"pass@{k} is left out: {len(short)} of {len(tally.samples)} tasks have fewer than {k} samples "
            f"({fewest} has {tally.samples[fewest]})"
        )
    say("samples: " + ", ".join(f"{status} {number:,}" for status, number in tally.statuses.most_common()))
    without = [name for name in tasks if name not in tally.samples]
    if without:
        say(
            f"not all tasks were attempted: {len(without)} of {len(tasks)} have no samples, and pass@k is over the "
            f"others: {', '.join(without[:5])}{', ...' if len(without) > 5 else ''}"
        )
    else:
        say(f"all {len(tasks)} tasks were attempted")
    for isolation in sorted(tally.isolations - {"namespaces"}):
        say(f"programs ran with isolation={isolation!r}, which protects less than namespaces: see docs/judge.md")
    say(f"\nVerdicts: {config.results}")


def _check_files(config: JudgingConfig) -> None:
    """Whether the file can be read and its output written; before anything that takes time."""
    if not config.file.name.endswith(_SUFFIXES):
        raise DataError(f"{config.file}: unknown kind of file; known: {', '.join(_SUFFIXES)}")
    if not config.file.is_file():
        raise DataError(f"no such file: {config.file}")
    if config.results.is_dir():
        raise ConfigError(f"{config.results} is a folder: give --output a file")
    if config.results.exists() and config.results.samefile(config.file):
        raise ConfigError(f"{config.results} holds the samples: give --output another file")
    if config.results.exists() and not config.overwrite:
        raise ConfigError(f"{config.results} is there already: add --overwrite, or choose another file with --output")
