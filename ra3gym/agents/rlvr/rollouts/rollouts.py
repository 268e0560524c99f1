"""Rollouts: programs sampled for a step's tasks, judged while the next ones are sampled.

Every prompt of every step has a random stream of its own, seeded by (seed, step, place in the step). So a run's samples
depend neither on how many are drawn at once nor on how many processes share the work, and a resumed run has no random
state to restore.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ra3gym.agents.rlvr.rollouts.rewards import Reward
from ra3gym.agents.rlvr.rollouts.sampler import Sampler
from ra3gym.errors import DataError
from ra3gym.lm import LoadedModel, Samples, encode_prompt
from ra3gym.lm.stopping import StopRule
from ra3gym.lm.stream import end_ids
from ra3gym.lm.tokenizer import decode_completion
from ra3gym.tasks import CodeTask
from ra3gym.verify import Graded


@dataclass(frozen=True)
class Rollouts:
    """G completions of each of P tasks; row n belongs to task `n // G`."""

    tasks: tuple[CodeTask, ...]
    group_size: int
    prompts: list[list[int]]
    """P token id lists."""
    completions: list[list[int]]
    """N token id lists, the token that ended them included."""
    logp_RT: Tensor
    """float32, nats, on the CPU: what the sampler gave each token; 0 behind the end."""
    texts: list[str]
    """Latents included, the end of text removed."""
    reward_R: Tensor
    """float32."""
    passed_R: Tensor
    """bool."""
    finished_R: Tensor
    """bool; false where `max_new_tokens` cut the completion off."""

    @property
    def num_tokens(self) -> int:
        """Tokens sampled."""
        return sum(map(len, self.completions))

    @property
    def informative(self) -> list[int]:
        """The tasks whose programs were not all rewarded alike."""
        reward_PG = self.reward_R.view(-1, self.group_size)
        return [int(index) for index in (reward_PG != reward_PG[:, :1]).any(1).nonzero()[:, 0]]

    def group(self, index: int) -> slice:
        """The rows of one task."""
        return slice(index * self.group_size, (index + 1) * self.group_size)

    def select(self, groups: Sequence[int]) -> Rollouts:
        """Some of the tasks, with their rows."""
        rows = [row for index in groups for row in range(*self.group(index).indices(len(self.completions)))]
        return Rollouts(
            tuple(self.tasks[index] for index in groups),
            self.group_size,
            [self.prompts[index] for index in groups],
            [self.completions[row] for row in rows],
            self.logp_RT[rows],
            [self.texts[row] for row in rows],
            self.reward_R[rows],
            self.passed_R[rows],
            self.finished_R[rows],
        )

    @classmethod
    def joined(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """The tasks of several parts, one after the other."""
        first, parts = parts[0], [part for part in parts if part.tasks]
        if not parts:
            return first
        logp_rows = [row_T for part in parts for row_T in part.logp_RT]
        return cls(
            tuple(task for part in parts for task in part.tasks),
            parts[0].group_size,
            [ids for part in parts for ids in part.prompts],
            [ids for part in parts for ids in part.completions],
            pad_sequence(logp_rows, batch_first=True),
            [text for part in parts for text in part.texts],
            torch.cat([part.reward_R for part in parts]),
            torch.cat([part.passed_R for part in parts]),
            torch.cat([part.finished_R for part in parts]),
        )


@dataclass(frozen=True)
class RolloutSettings:
    """What a run's rollouts have in common."""

    group_size: int
    max_new_tokens: int
    temperature: float
    rows_per_sample: int
    allowed_mask_V: Tensor | None = None
    make_stop: Callable[[Sequence[CodeTask], int], StopRule] | None = None
    """From the tasks sampled for and G to a rule that ends their completions early."""


def roll_out(
    sampler: Sampler,
    tokenizer: Any,
    model: Any,
    tasks: Sequence[CodeTask],
    seeds: Sequence[int],
    reward: Reward,
    settings: RolloutSettings,
) -> Rollouts:
    """Sample and grade programs for these tasks, task i with a stream of its own from `seeds[i]`."""
    ends = end_ids(LoadedModel(model, tokenizer))
    pad = min(ends) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    group_size = settings.group_size
    count = max(1, settings.rows_per_sample // group_size)
    waiting: list[tuple[Sequence[CodeTask], Samples, list[str], Future[list[Graded]]]] = []
    for start in range(0, len(tasks), count):
        chosen = tasks[start : start + count]
        prompts = [encode_prompt(tokenizer, task.prompt) for task in chosen]
        samples = sampler.sample(
            prompts,
            group_size=group_size,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + count]],
            eos_ids=ends,
            pad_id=pad,
            allowed_mask_V=settings.allowed_mask_V,
            stop=None if settings.make_stop is None else settings.make_stop(chosen, group_size),
        )
        texts = [
            decode_completion(tokenizer, prompts[row // group_size], ids[:-1] if ids and ids[-1] in ends else ids)
            for row, ids in enumerate(samples.completions())
        ]
        graded = reward.submit([task for task in chosen for _ in range(group_size)], texts)
        waiting.append((chosen, samples, texts, graded))
    parts = []
    for chosen, samples, texts, future in waiting:
        found = future.result()
        _check_rewards(chosen, found, group_size)
        part = Rollouts(
            tasks=tuple(chosen),
            group_size=group_size,
            prompts=samples.prompt_ids,
            completions=samples.completions(),
            logp_RT=samples.logp_RT.float().cpu(),
            texts=texts,
            reward_R=torch.tensor([one.reward for one in found]),
            passed_R=torch.tensor([one.passed for one in found]),
            finished_R=samples.finished_R.cpu(),
        )
        parts.append(part)
    return Rollouts.joined(parts)


def _check_rewards(tasks: Sequence[CodeTask], graded: Sequence[Graded], group_size: int) -> None:
    """`DataError` unless there is a finite reward for each program: one NaN would spoil the whole step's gradient."""
    if len(graded) != len(tasks) * group_size:
        raise DataError(f"the reward graded {len(graded)} programs of {len(tasks) * group_size}: it must grade each")
    for row, one in enumerate(graded):
        if not math.isfinite(one.reward):
            name = tasks[row // group_size].task_id
            raise DataError(f"the reward of a program for task {name!r} is {one.reward}: rewards are finite")


def stream_seed(seed: int, step: int, *place: int) -> int:
    """The seed of the random stream at one place of a step."""
    return int(np.random.SeedSequence([seed, step, *place]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class TaskOrder:
    """Which tasks a step has: shuffled passes over all of them, one after the other, without end."""

    def __init__(self, num_tasks: int, seed: int) -> None:
        self._num_tasks = num_tasks
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int) -> int:
        """The task at a place in the order, counted from 0 over all steps."""
        epoch, within = divmod(place, self._num_tasks)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._num_tasks)
        return int(self._order[within])
