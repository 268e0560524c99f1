"""Grading a file of completions: what `ra3gym judge` does.

FILE.jsonl            HumanEval's own format, one line per sample: task_id, completion
FILE_results.jsonl    the same lines in the same order, with the verdict: passed, status, message, score

The file may be larger than memory. It is read twice: first every line is checked, so that a mistake in the last one is
found before any program runs; then the samples are graded, a few batches at a time.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ra3gym.errors import ConfigError, DataError
from ra3gym.experiments.commands.task_sets import judge_limits, tasks_by_id, timeouts_line, without_limits
from ra3gym.experiments.report.statistics import estimate_mean
from ra3gym.files import check_writable, replacing_text
from ra3gym.plugins import import_plugins
from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.tasks.ids import IdFinder
from ra3gym.tasks.records import Record, read_records
from ra3gym.verify import Graded, Grader, Judge, Verdict, pass_at_k

_SUFFIXES = (".jsonl", ".jsonl.gz")
_BATCH_PER_WORKER = 4  # small, as Ctrl-C waits for running batches; larger ones are no faster
_BATCHES_AHEAD = 32  # so that other workers continue while a slow program runs
_PLAIN_LINE_SECONDS = 30.0

Sample = tuple[Record, CodeTask, str]
"""A line of the file, its task, and the whole program to grade."""


@dataclass(frozen=True)
class JudgingConfig:
    """Grade a file of completions: run each task's tests on them, write the verdicts, estimate pass@k.

    Attributes:
        file: a .jsonl or .jsonl.gz file. A line is {"task_id", "completion"}, as in HumanEval, where the completion
            follows the task's prompt, or {"task_id", "solution"}, a whole program, as in EvalPlus. In a line with
            both, the solution is graded. A number as task_id, or as a string, names the task of that number. Samples of
            tasks that the set does not hold are left out, with a warning.
        tasks: the tasks that the completions solve: humaneval, humaneval+, mbpp, mbpp-sanitized, mbpp+, livecodebench,
            codeforces, acecode, idioms, doctest:PACKAGE, a file of your own (jsonl:FILE), or a set of a plug-in.
            A line of such a file is an object like {"prompt": "def inc(x):\\n", "entry_point": "inc",
            "inputs": [[1]], "outputs": [2]}; or with "test": "def check(candidate): assert candidate(1) == 2" for
            inputs and outputs; or {"prompt": "# Add one.\\n", "inputs": ["1\\n"], "outputs": ["2\\n"]} for a program
            that reads stdin (docs/tasks.md).
        split: one split of the tasks; by default the whole benchmark, and the evaluation split of idioms.
        path: a file in the benchmark's own format, or a folder that holds it; by default the folder that the
            environment variable RA3GYM_DATA names, else the Hugging Face hub.
        k: the k of pass@k, separated by commas; a k that exceeds some task's number of samples is left out.
        workers: processes that run programs in parallel: the cores you can spare.
        seconds: CPU seconds that one program may use; by default what the tasks say (60 for humaneval+ and mbpp+, 6 for
            each test of livecodebench, the time limit of a codeforces problem), else 4. A program that waits instead of
            computing ends after ten times as many seconds, and at least 30.
        memory_mb: address space that one program may use, in MB; by default what the tasks say (4096 for humaneval+ and
            mbpp+, the memory limit of a codeforces problem), else 1024.
        isolation: how programs are kept from the rest of the machine (docs/judge.md); by default what the environment
            variable RA3GYM_ISOLATION says, else namespaces. `ra3gym doctor` shows which kinds work on this machine.
        output: where the verdicts go, compressed if it ends in .gz; by default FILE_results.jsonl in the file's folder.
        overwrite: replace the output of an earlier run; without it nothing is ever overwritten.
        plugins: modules to import first, which may register task sets (`ra3gym.tasks.register_tasks`).
    """

    file: tyro.conf.Positional[Path]
    tasks: str
    split: str | None = None
    path: Path | None = None
    k: tuple[int, ...] = (1, 10, 100)
    workers: int = 2
    seconds: float | None = None
    memory_mb: int | None = None
    isolation: Literal["namespaces", "process", "process-as-root"] | None = None
    output: Path | None = None
    overwrite: bool = False
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        import_plugins(self.plugins)
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
    """Counts of what has been graded.

    Attributes:
        samples, passes: by task id.
        statuses: samples by status.
        unknown: samples that are not graded, by their ids, which the set does not hold.
        isolations: the kinds of isolation under which programs ran.
    """

    samples: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    isolations: set[str] = field(default_factory=set)

    def add(self, task: CodeTask, verdict: Verdict) -> None:
        """Count one more sample."""
        self.samples[task.task_id] += 1
        self.passes[task.task_id] += verdict.passed
        self.statuses[verdict.status] += 1
        self.isolations.add(verdict.isolation)

    def pass_at(self, k: int) -> list[float] | None:
        """Return pass@k of each task that has samples; `None` when one of them has fewer than k."""
        if min(self.samples.values()) < k:
            return None
        estimates: list[float] = pass_at_k(
            list(self.samples.values()), [self.passes[name] for name in self.samples], k
        ).tolist()
        return estimates


def judge_file(config: JudgingConfig, console: Console) -> Tally:
    """Grade a file of completions, with progress and a table on `console`; the verdicts' file appears at the end.

    Raises:
        DataError, UnknownNameError: the file, a line of it or the tasks cannot be used.
        ConfigError: a value out of range, or an output that exists already or whose folder is missing.
        OutputError: the output cannot be written; verdicts that were are in NAME.part, which the message names.
        SandboxUnavailable, JudgeError: this machine cannot run programs as asked; nothing is written.
    """
    limits = judge_limits(config.seconds, config.memory_mb)
    _check_files(config)
    loaded = load_tasks(config.tasks, split=config.split, path=config.path)
    tasks = tasks_by_id(without_limits(loaded, config.seconds, config.memory_mb), config.tasks)
    tally = Tally()
    with console.status(f"checking {config.file.name}"):
        total = sum(1 for _ in read_samples(config.file, tasks, tally.unknown))
    if total == 0 and not tally.unknown:
        raise DataError(f"{config.file} holds no samples: give one JSON object per line, with task_id and completion")
    if total == 0:
        raise DataError(f"{config.file}: {_unknown(next(iter(tally.unknown)), tasks, config.tasks)}, nor any other")
    with (
        replacing_text(config.results, salvage=True) as results,
        Judge(workers=config.workers, limits=limits, isolation=config.isolation) as judge,
        GradingProgress(total, console) as progress,
    ):
        samples = read_samples(config.file, tasks)
        for record, task, verdict in graded(samples, Grader(judge), _BATCH_PER_WORKER * config.workers):
            fields = {
                "passed": verdict.passed,
                "status": verdict.status,
                "message": verdict.message,
                "score": verdict.score,
            }
            results.write(json.dumps({**record.fields, **fields}) + "\n")
            tally.add(task, verdict)
            progress.add(verdict.passed)
    show_tally(tally, config, tasks, console)
    return tally


def read_samples(file: Path, tasks: Mapping[str, CodeTask], unknown: Counter[str] | None = None) -> Iterator[Sample]:
    """Yield the samples of a file, without those of tasks that the set does not hold.

    Args:
        file: a .jsonl or .jsonl.gz file.
        tasks: by id. A number names its task too, see `ra3gym.tasks.ids`.
        unknown: counts the samples that are left out, by their ids.

    Raises:
        DataError: a sample cannot be graded; the message names file, line and field.
    """
    finder = IdFinder(tasks)
    for record in read_records(file):
        given = record.fields.get("task_id")
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            _ = record.text("task_id")  # raises
        task_id = finder.find(given)
        if task_id is None:
            if unknown is not None:
                unknown[str(given)] += 1
            continue
        task = tasks[task_id]
        if "solution" in record:
            yield record, task, record.text("solution")
        elif "completion" in record:
            yield record, task, task.prompt + record.text("completion")
        else:
            raise record.wrong(
                "completion", f"is missing, and so is 'solution'; the record has {', '.join(record.fields)}"
            )


def graded(samples: Iterable[Sample], grader: Grader, batch_size: int) -> Iterator[tuple[Record, CodeTask, Verdict]]:
    """Yield each sample with its verdict, in order; at most a few batches are held at once."""
    waiting: deque[tuple[list[Sample], Future[list[Graded]]]] = deque()
    rest = iter(samples)
    while True:
        while len(waiting) < _BATCHES_AHEAD and (batch := list(islice(rest, batch_size))):
            programs = [program for _, _, program in batch]
            waiting.append((batch, grader.submit_programs([task for _, task, _ in batch], programs)))
        if not waiting:
            return
        batch, grades = waiting.popleft()
        for (record, task, _), grade in zip(batch, grades.result(), strict=True):
            assert grade.verdict is not None
            yield record, task, grade.verdict


class GradingProgress:
    """Shows how far grading is: a live bar, or a line every half minute without a terminal. A context manager."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._console = console
        self._graded = self._passed = 0
        self._bar = Progress(
            TextColumn("judge"),
            BarColumn(bar_width=18),
            TextColumn("{task.fields[progress]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._started = self._printed = time.monotonic()
        self._row = self._bar.add_task("", total=self._total, progress="")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, passed: bool) -> None:
        """Count one more graded sample."""
        self._graded += 1
        self._passed += passed
        now = time.monotonic()
        speed = self._graded / max(1e-9, now - self._started)
        progress = f"{self._graded:,}/{self._total:,}  {speed:,.0f} gradings/s  {self._passed:,} passed"
        self._bar.update(self._row, completed=self._graded, progress=progress)
        if not self._console.is_terminal and now - self._printed >= _PLAIN_LINE_SECONDS:
            self._printed = now
            left = timedelta(seconds=round((self._total - self._graded) / speed))
            self._console.print(f"judge  {progress}  ETA {left}", highlight=False, soft_wrap=True)


def show_tally(tally: Tally, config: JudgingConfig, tasks: Mapping[str, CodeTask], console: Console) -> None:
    """Print pass@k as a table, then remarks on samples and tasks."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    count = tally.samples.total()
    say(f"{config.file.name} on {config.tasks}: {count:,} samples of {len(tally.samples)} tasks; mean over tasks")
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
        estimate = estimate_mean(values, bounds=(0.0, 1.0))
        interval = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
        table.add_row(
            str(k), f"{100 * estimate.mean:.1f}", interval if math.isfinite(estimate.low) else "too few tasks"
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
    if warning := timeouts_line(tally.statuses):
        say(warning)
    if tally.unknown:
        count = tally.unknown.total()
        say(
            f"warning: {count:,} {'sample is' if count == 1 else 'samples are'} not graded and without a verdict: "
            f"{_unknown(next(iter(tally.unknown)), tasks, config.tasks)}"
            + (f"; unknown too: {', '.join(list(tally.unknown)[1:5])}" if len(tally.unknown) > 1 else "")
            + (", ..." if len(tally.unknown) > 5 else "")
        )
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


def _unknown(task_id: str, tasks: Mapping[str, CodeTask], name: str) -> str:
    """Return what is wrong with an id that the set does not hold."""
    close = get_close_matches(task_id, tasks, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"its ids are like {next(iter(tasks))!r}"
    return f"{name!r} has no task {task_id[:80]!r} ({hint})"


def _check_files(config: JudgingConfig) -> None:
    """Raise unless the file can be read and its output written; called before anything that takes time."""
    if not config.file.name.endswith(_SUFFIXES):
        raise DataError(f"{config.file}: unknown kind of file; known: {', '.join(_SUFFIXES)}")
    if not config.file.is_file():
        raise DataError(f"no such file: {config.file}")
    if config.results.is_dir():
        raise ConfigError(f"{config.results} is a folder: give --output a file")
    if config.results.exists() and config.results.samefile(config.file):
        raise ConfigError(f"{config.results} holds the samples: give --output another file")
    if not os.access(config.results.parent, os.W_OK):
        raise ConfigError(f"cannot write {config.results}: choose another place with --output")
    if config.results.exists() and not config.overwrite:
        raise ConfigError(f"{config.results} exists already: add --overwrite, or choose another file with --output")
    check_writable(config.results.parent)
