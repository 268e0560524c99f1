"""Evaluation of a model on tasks: pass@k, decisions per episode, programs to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ra3gym.agents.rlvr import without_latents
from ra3gym.errors import ConfigError, DataError
from ra3gym.experiments.report.results import ProgramSample
from ra3gym.lm import Completions, complete, latent_ids
from ra3gym.tasks import CodeTask
from ra3gym.tasks.answers import split_latents
from ra3gym.verify import Judge, Verdict
from ra3gym.verify.passk import pass_at_k


@dataclass(frozen=True)
class SampledPrograms:
    """Completions of tasks and what the judge said of them, row by row."""

    completions: tuple[list[int], ...]
    """Token ids, the end of text included where there is one."""
    texts: tuple[str, ...]
    """The completions as text, latents included, the end of text removed."""
    verdicts: tuple[Verdict, ...]

    @classmethod
    def joined(cls, parts: Sequence[SampledPrograms]) -> SampledPrograms:
        """The rows of several batches, one after the other."""
        return cls(
            tuple(row for part in parts for row in part.completions),
            tuple(row for part in parts for row in part.texts),
            tuple(row for part in parts for row in part.verdicts),
        )


@dataclass(frozen=True)
class Evaluation:
    """What evaluation found: pass@k by k (unbiased), mean decisions per episode, and the programs themselves.

    A decision is a latent for a model that emits at least one latent a program, else a token.
    """

    pass_at: dict[int, float]
    decisions: float
    programs: SampledPrograms


@dataclass(frozen=True)
class GradedBatch:
    """Programs and the tasks they belong to, row by row."""

    tasks: tuple[CodeTask, ...]
    programs: SampledPrograms


def graded_batches(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[CodeTask],
    judge: Judge,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
    batch_size: int,
    completion_of: Callable[[CodeTask, str], str] = without_latents,
) -> Iterator[GradedBatch]:
    """Sample `samples` programs for each task, `batch_size` at once, and judge them; the rows of a task stay together.

    A batch is judged while the next one is sampled. `completion_of(task, text)` is the part of a sampled text that is
    graded behind the task's prompt.
    """
    waiting: tuple[tuple[CodeTask, ...], Completions, Future[list[Verdict]]] | None = None
    for chosen, group_size in _groups(tasks, samples, batch_size):
        found = complete(
            model,
            tokenizer,
            [task.prompt for task in chosen],
            group_size=group_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            generator=generator,
        )
        rows = tuple(task for task in chosen for _ in range(group_size))
        pairs = zip(rows, found.texts, strict=True)
        verdicts = judge.submit([(task, task.prompt + completion_of(task, text)) for task, text in pairs])
        if waiting is not None:
            yield _graded(*waiting)
        waiting = rows, found, verdicts
    if waiting is not None:
        yield _graded(*waiting)


def _groups(tasks: Sequence[CodeTask], samples: int, batch_size: int) -> Iterator[tuple[Sequence[CodeTask], int]]:
    """Tasks to sample for at once, with the number of samples of each; a task beyond `batch_size` comes in parts."""
    if samples > batch_size:
        for task in tasks:
            for start in range(0, samples, batch_size):
                yield [task], min(batch_size, samples - start)
    else:
        count = batch_size // samples
        for start in range(0, len(tasks), count):
            yield tasks[start : start + count], samples


def _graded(tasks: tuple[CodeTask, ...], found: Completions, verdicts: Future[list[Verdict]]) -> GradedBatch:
    return GradedBatch(tasks, SampledPrograms(found.ids, found.texts, tuple(verdicts.result())))


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[CodeTask],
    judge: Judge,
    *,
    samples: int,
    ks: Sequence[int] = (1,),
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int,
    tasks_per_batch: int = 32,
) -> Evaluation:
    """Sample `samples` programs for each task and judge them.

    Raises `DataError` without tasks, `ConfigError` for a k above `samples`.
    """
    if not tasks:
        raise DataError("there are no tasks to evaluate on")
    if max(ks) > samples:
        raise ConfigError(f"pass@{max(ks)} needs at least {max(ks)} samples per task, but samples={samples}")
    batches = graded_batches(
        model,
        tokenizer,
        tasks,
        judge,
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        generator=torch.Generator().manual_seed(seed),
        batch_size=tasks_per_batch * samples,
    )
    programs = SampledPrograms.joined([batch.programs for batch in batches])
    correct = np.array([verdict.passed for verdict in programs.verdicts]).reshape(len(tasks), samples).sum(axis=1)
    latents = set(latent_ids(tokenizer))
    latents_used = np.mean([sum(token in latents for token in completion) for completion in programs.completions])
    length = np.mean([len(completion) for completion in programs.completions])
    return Evaluation(
        pass_at={k: float(pass_at_k(samples, correct, k).mean()) for k in ks},
        decisions=float(latents_used if latents_used >= 1 else length),
        programs=programs,
    )


def shown_programs(evaluation: Evaluation, tasks: Sequence[CodeTask], count: int) -> list[ProgramSample]:
    """The first sample of each of the first `count` tasks, cut into the segments of its latents."""
    per_task = len(evaluation.programs.texts) // len(tasks)
    return [
        ProgramSample(
            prompt=task.prompt,
            segments=tuple(split_latents(evaluation.programs.texts[index * per_task])),
            passed=evaluation.programs.verdicts[index * per_task].passed,
            task_id=task.task_id,
        )
        for index, task in enumerate(tasks[:count])
    ]
