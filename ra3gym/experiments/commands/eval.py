"""pass@k of any checkpoint on any set of tasks: what `ra3gym eval` does.

root/eval-YYYYmmdd-HHMMSS/
    config.json, manifest.json
    samples.jsonl    HumanEval's own format, one line per sample: task_id, completion
    results.jsonl    the same lines with the verdict: passed, status, score, message
                     (both are called NAME.part until the evaluation has finished)
    summary.json     pass@k with intervals, written last
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ra3gym.agents.rlvr.rollouts.function_end import FunctionEnd
from ra3gym.errors import ConfigError
from ra3gym.experiments.commands.task_sets import judge_limits, task_budgets, tasks_by_id, timeouts_line, without_limits
from ra3gym.experiments.report.statistics import estimate_mean
from ra3gym.experiments.studies.evaluation import graded_batches
from ra3gym.experiments.studies.progress import StudyProgress
from ra3gym.files import check_writable, completing_text
from ra3gym.lm import LoadedModel, load
from ra3gym.plugins import import_plugins
from ra3gym.runs.folder import RunFolder
from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.tasks.answers import answer_reader
from ra3gym.verify import Grader, Judge, Limits, Status, pass_at_k

EVALUATION = "eval"
"""The kind of evaluations' run folders."""

PROMPT_TOO_LONG = "prompt_too_long"
"""The status of samples that could not be drawn because the prompt fills the model's context."""


@dataclass(frozen=True)
class ModelEvaluationConfig:
    """Evaluate a checkpoint: sample programs for each task, run their tests, estimate pass@k.

    Attributes:
        model: a checkpoint: "embedded", a folder written by save_pretrained, a hub id, or a .gguf file.
        tasks: the tasks to solve: idioms, humaneval, humaneval+, mbpp, mbpp-sanitized, mbpp+, livecodebench,
            codeforces, acecode, doctest:PACKAGE, a file of your own (jsonl:FILE), or a set of a plug-in.
            A line of such a file is an object like {"prompt": "def inc(x):\\n", "entry_point": "inc",
            "inputs": [[1]], "outputs": [2]}; or with "test": "def check(candidate): assert candidate(1) == 2" for
            inputs and outputs; or {"prompt": "# Add one.\\n", "inputs": ["1\\n"], "outputs": ["2\\n"]} for a program
            that reads stdin (docs/tasks.md).
        split: one split of the tasks; by default the whole benchmark, and the evaluation split of idioms.
        path: a file in the benchmark's own format, or a folder that holds it; by default the folder that the
            environment variable RA3GYM_DATA names, else the Hugging Face hub.
        limit: only the first so many tasks.
        n: programs sampled per task. More make the interval narrower; pass@k needs at least k.
        k: the k of pass@k, separated by commas.
        temperature: of the sampling: 0.2 suits pass@1, 0.8 suits pass@10 and more; 0 takes the likeliest token (n must
            be 1 then).
        max_new_tokens: longest completion in tokens. A completion ends where the task's function ends, as what follows
            is cut off before grading (programs that read stdin excepted). Shorter for tasks whose prompt leaves less
            room in the model's context.
        seed: of the sampling: the same seed and batch size give the same programs on the same machine.
        batch_size: programs sampled at once. Higher is faster; lower it when memory runs out.
        workers: processes that run the tests while programs are sampled.
        device: where the model runs, as torch names it; "auto" takes a GPU if there is one.
        dtype: precision of the weights; bfloat16 halves the memory and is faster on most GPUs.
        judge_seconds: CPU seconds that one program may use; by default what the tasks say (60 for humaneval+ and mbpp+,
            6 for each test of livecodebench, the time limit of a codeforces problem), else 4.
        judge_memory_mb: address space that one program may use, in MB; by default what the tasks say (4096 for
            humaneval+ and mbpp+, the memory limit of a codeforces problem), else 1024.
        output: the folder that the evaluation's own folder is made in; nothing is overwritten.
        plugins: modules to import first, which may register task sets (`ra3gym.tasks.register_tasks`).
    """

    model: str
    tasks: str
    split: str | None = None
    path: Path | None = None
    limit: int | None = None
    n: int = 20
    k: tuple[int, ...] = (1, 10)
    temperature: float = 0.8
    max_new_tokens: int = 512
    seed: int = 0
    batch_size: int = 64
    workers: int = 2
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    judge_seconds: float | None = None
    judge_memory_mb: int | None = None
    output: Path = Path("runs")
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        import_plugins(self.plugins)
        for name in ("n", "max_new_tokens", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give at least 1")
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k={self.k}: give one or several numbers of at least 1, as in --k 1,10")
        if max(self.k) > self.n:
            raise ConfigError(
                f"k={max(self.k)} is larger than n={self.n}: pass@{max(self.k)} needs at least {max(self.k)} samples "
                "per task; raise --n or lower --k"
            )
        if self.temperature < 0 or not math.isfinite(self.temperature):
            raise ConfigError(f"temperature={self.temperature}: give 0 (the likeliest token) or a positive number")
        if self.temperature == 0 and self.n > 1:
            raise ConfigError(f"temperature=0 gives the same program n={self.n} times: add --n 1 --k 1")

    @property
    def limits(self) -> Limits:
        """Limits of one run of a program whose task has none: the given values, else the defaults."""
        return judge_limits(self.judge_seconds, self.judge_memory_mb)


def evaluate_model(config: ModelEvaluationConfig, console: Console) -> RunFolder:
    """Evaluate a checkpoint in a new run folder, with progress and a table on `console`.

    Raises:
        ModelError: the model cannot be loaded.
        UnknownNameError, DataError: no such tasks, or unusable ones.
        ConfigError: a judge's limit out of range.
        OutputError: the output cannot be written; before the model is loaded, if it is so from the start.
    """
    limits = config.limits
    check_writable(config.output)
    tasks = load_tasks(config.tasks, split=config.split, path=config.path, limit=config.limit)
    tasks = without_limits(tasks, config.judge_seconds, config.judge_memory_mb)
    tasks_by_id(tasks, config.tasks)  # raises for an id that occurs twice
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load(config.model, device=device, dtype=config.dtype)
    run = RunFolder.create(config.output, EVALUATION, config)
    console.print(f"Run folder: {run.path}", highlight=False, soft_wrap=True)
    with (
        completing_text(run.path / "samples.jsonl") as samples_file,
        completing_text(run.path / "results.jsonl") as results_file,
        Judge(workers=config.workers, limits=limits) as judge,
    ):
        summary = _evaluate(config, loaded, tasks, judge, samples_file, results_file, console)
    run.write_summary(summary)
    show_summary(summary, console)
    console.print(f"\nSamples and verdicts: {run.path}", highlight=False, soft_wrap=True)
    return run


def _evaluate(
    config: ModelEvaluationConfig,
    loaded: LoadedModel,
    tasks: Sequence[CodeTask],
    judge: Judge,
    samples_file: TextIO,
    results_file: TextIO,
    console: Console,
) -> dict[str, Any]:
    """Sample and grade all tasks, and write each batch at once; return the summary."""
    room = task_budgets(loaded, tasks, config.max_new_tokens)
    done: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    tokens = 0
    started = time.perf_counter()

    def record(task: CodeTask, completion: str, status: str, score: float, message: str) -> None:
        passed = status == Status.PASSED
        sample = {"task_id": task.task_id, "completion": completion}
        verdict = {"passed": passed, "status": status, "score": score, "message": message}
        samples_file.write(json.dumps(sample) + "\n")
        results_file.write(json.dumps(sample | verdict) + "\n")
        done[task.task_id] += 1
        correct[task.task_id] += passed
        statuses[status] += 1

    def report() -> None:
        ended = sum(count == config.n for count in done.values())
        shown = {"pass rate": statuses[Status.PASSED] / max(1, done.total())}
        if tokens:
            shown["tokens_per_second"] = tokens / (time.perf_counter() - started)
        progress.reporter.update(config.seed, config.tasks, EVALUATION, ended, len(tasks), **shown)

    completion_of = answer_reader(loaded.tokenizer)
    grader = Grader(judge, completion_of=completion_of)
    generator = torch.Generator().manual_seed(config.seed)
    with StudyProgress([(config.seed, config.tasks, EVALUATION)], title=EVALUATION, console=console) as progress:
        for task in tasks:
            if room[task.task_id] == 0:
                for _ in range(config.n):
                    record(task, "", PROMPT_TOO_LONG, 0.0, "the prompt leaves no room in the model's context")
        report()
        fitting = sorted((task for task in tasks if room[task.task_id]), key=lambda task: -room[task.task_id])
        for budget, alike in groupby(fitting, key=lambda task: room[task.task_id]):
            for batch in graded_batches(
                loaded.model,
                loaded.tokenizer,
                list(alike),
                grader,
                samples=config.n,
                max_new_tokens=budget,
                temperature=config.temperature,
                generator=generator,
                batch_size=config.batch_size,
                make_stop=partial(FunctionEnd, loaded.tokenizer),
            ):
                for task, text, grade in zip(batch.tasks, batch.texts, batch.grades, strict=True):
                    verdict = grade.verdict
                    assert verdict is not None
                    record(task, completion_of(task, text), verdict.status, verdict.score, verdict.message)
                tokens += sum(map(len, batch.completions))
                samples_file.flush()
                results_file.flush()
                report()
    seconds = time.perf_counter() - started
    counts = [correct[task.task_id] for task in tasks]
    return {
        "model": config.model,
        "tasks": config.tasks,
        "num_tasks": len(tasks),
        "n": config.n,
        "temperature": config.temperature,
        "pass_at_k": {str(k): _estimate(pass_at_k(config.n, counts, k).tolist()) for k in sorted(set(config.k))},
        "statuses": dict(statuses.most_common()),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "prompt_too_long": [task.task_id for task in tasks if room[task.task_id] == 0],
        "shortened": {name: budget for name, budget in room.items() if 0 < budget < config.max_new_tokens},
    }


def show_summary(summary: dict[str, Any], console: Console) -> None:
    """Print a summary as a table, then remarks on its tasks."""
    console.print(
        f"{summary['model']} on {summary['tasks']}: {summary['num_tasks']} tasks, {summary['n']} samples each, "
        f"temperature {summary['temperature']:g}; mean over tasks",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("k", "pass@k %", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for k, found in summary["pass_at_k"].items():
        low, high = found["low"], found["high"]
        interval = "too few tasks" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"
        table.add_row(k, f"{100 * found['mean']:.1f}", interval)
    console.print(table)
    statuses = ", ".join(f"{status} {count:,}" for status, count in summary["statuses"].items())
    console.print(f"samples: {statuses}", highlight=False, soft_wrap=True)
    if warning := timeouts_line(summary["statuses"]):
        console.print(warning, highlight=False, soft_wrap=True)
    if too_long := summary["prompt_too_long"]:
        console.print(
            f"{len(too_long)} task(s) count as failed, their prompts leave no room in the model's context: "
            f"{_some(too_long)}",
            highlight=False,
            soft_wrap=True,
        )
    if shortened := summary["shortened"]:
        console.print(
            f"{len(shortened)} task(s) had less than max_new_tokens, for the model's context: {_some(list(shortened))}",
            highlight=False,
            soft_wrap=True,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _estimate(values: list[float]) -> dict[str, float | None]:
    estimate = estimate_mean(values, bounds=(0.0, 1.0))
    has_interval = math.isfinite(estimate.low)
    return {
        "mean": estimate.mean,
        "low": estimate.low if has_interval else None,
        "high": estimate.high if has_interval else None,
    }
