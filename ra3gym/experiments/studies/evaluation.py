"""Evaluation of a model on tasks: pass@k, decisions per episode, programs to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from ra3gym.errors import ConfigError, DataError
from ra3gym.experiments.report.results import ProgramSample
from ra3gym.lm import Completions, StopRule, complete, latent_ids
from ra3gym.lm.rendering import Prompt
from ra3gym.tasks import CodeTask
from ra3gym.tasks.answers import split_latents
from ra3gym.verify import Graded, Grader, Judge
from ra3gym.verify.passk import pass_at_k


@dataclass(frozen=True)
class GradedSamples:
    """Samples with their tasks and grades, row by row.

    Attributes:
        tasks: of each row.
        completions: token ids, the end token included if there is one.
        texts: the completions as text, latents included, the end token removed.
        grades: with the judge's verdicts.
    """

    tasks: tuple[CodeTask, ...]
    completions: tuple[list[int], ...]
    texts: tuple[str, ...]
    grades: tuple[Graded, ...]

    @classmethod
    def joined(cls, parts: Sequence[GradedSamples]) -> GradedSamples:
        """Return the rows of several batches, one after the other."""
        return cls(
            tuple(chain.from_iterable(part.tasks for part in parts)),
            tuple(chain.from_iterable(part.completions for part in parts)),
            tuple(chain.from_iterable(part.texts for part in parts)),
            tuple(chain.from_iterable(part.grades for part in parts)),
        )


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        pass_at: pass@k by k, unbiased.
        decisions: mean number per episode: latents for a model that emits at least one latent a program, else tokens.
        samples: what was graded.
    """

    pass_at: dict[int, float]
    decisions: float
    samples: GradedSamples


def graded_batches(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[CodeTask],
    grader: Grader,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
    batch_size: int,
    make_stop: Callable[[Sequence[CodeTask], Sequence[Prompt], int], StopRule] | None = None,
) -> Iterator[GradedSamples]:
    """Sample `samples` programs for each task, `batch_size` at once, and grade them; the rows of a task stay together.

    A batch is graded while the next one is sampled. `make_stop` makes a rule that ends programs early, from the tasks
    of a batch, their prompts and the number of samples of each.
    """
    waiting: tuple[tuple[CodeTask, ...], Completions, Future[list[Graded]]] | None = None
    for chosen, group_size in _groups(tasks, samples, batch_size):
        completions = complete(
            model,
            tokenizer,
            [task.prompt for task in chosen],
            group_size=group_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            generator=generator,
            make_stop=None if make_stop is None else partial(make_stop, chosen),
        )
        rows = tuple(task for task in chosen for _ in range(group_size))
        grades = grader.submit(rows, completions.texts)
        if waiting is not None:
            yield _graded(*waiting)
        waiting = rows, completions, grades
    if waiting is not None:
        yield _graded(*waiting)


def _groups(tasks: Sequence[CodeTask], samples: int, batch_size: int) -> Iterator[tuple[Sequence[CodeTask], int]]:
    """Yield tasks to sample for at once, and the number of samples of each; `batch_size` may cut a task into parts."""
    if samples > batch_size:
        for task in tasks:
            for start in range(0, samples, batch_size):
                yield [task], min(batch_size, samples - start)
    else:
        count = batch_size // samples
        for start in range(0, len(tasks), count):
            yield tasks[start : start + count], samples


def _graded(tasks: tuple[CodeTask, ...], completions: Completions, grades: Future[list[Graded]]) -> GradedSamples:
    return GradedSamples(tasks, completions.ids, completions.texts, tuple(grades.result()))


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
    """Sample `samples` programs for each task and grade them.

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
        Grader(judge),
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        generator=torch.Generator().manual_seed(seed),
        batch_size=tasks_per_batch * samples,
    )
    rows = GradedSamples.joined(list(batches))
    correct = np.array([grade.passed for grade in rows.grades]).reshape(len(tasks), samples).sum(axis=1)
    latents = set(latent_ids(tokenizer))
    latents_used = np.mean([sum(token in latents for token in completion) for completion in rows.completions])
    length = np.mean([len(completion) for completion in rows.completions])
    return Evaluation(
        pass_at={k: float(pass_at_k(samples, correct, k).mean()) for k in ks},
        decisions=float(latents_used if latents_used >= 1 else length),
        samples=rows,
    )


def shown_programs(evaluation: Evaluation, tasks: Sequence[CodeTask], count: int) -> list[ProgramSample]:
    """Return the first sample of each of the first `count` tasks, cut into the segments of its latents."""
    samples = evaluation.samples
    per_task = len(samples.texts) // len(tasks)
    return [
        ProgramSample(
            prompt=task.prompt,
            segments=tuple(split_latents(samples.texts[index * per_task])),
            passed=samples.grades[index * per_task].passed,
            task_id=task.task_id,
        )
        for index, task in enumerate(tasks[:count])
    ]
