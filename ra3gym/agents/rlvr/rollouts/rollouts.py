"""Rollouts: programs sampled for a step's tasks, graded while the next ones are sampled.

Every prompt of every step has a random stream of its own, seeded by (seed, step, place in the step). So a run's samples
do not depend on how many are drawn at once or on how many processes share the work, and a resumed run has no random
state to restore.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ra3gym.agents.rlvr.rollouts.rewards import Reward, usable_reward
from ra3gym.agents.rlvr.rollouts.sampler import Sampler
from ra3gym.errors import DataError
from ra3gym.lm import LoadedModel, Samples
from ra3gym.lm.rendering import UNFORCED, FirstChoice, ForcedText, Prompt, completion_text
from ra3gym.lm.stopping import StopRule
from ra3gym.lm.stream import end_ids
from ra3gym.tasks import CodeTask
from ra3gym.verify import Graded


@dataclass(frozen=True)
class Rollouts:
    """Completions of P tasks, G each: R = P x G rows. Row n belongs to task `n // G`.

    Attributes:
        tasks: P tasks.
        group_size: G.
        prompts: P lists of token ids.
        completions: R lists of token ids; the token that ended a completion is included.
        logp_RT: float32, nats, on the CPU; the sampler's log-probability of each token, 0 after the end.
        texts: of the completions; latents are included, the end token is not.
        graded_R: float32, the reward as graded; NaN where grading gave none.
        reward_R: float32, `graded_R` after shaping (the punishment of long completions).
        passed_R: bool.
        finished_R: bool; false when `max_new_tokens` cut the completion off.
        masked_R: bool; true at rows that nothing is learned from: no reward, or cut off where those are masked.
        first_choices: for each row, its first decision: tokens before it write text that the prompt forces
            (`ra3gym.lm.rendering`), and belong to the prompt. Empty where no prompt forces text.
    """

    tasks: tuple[CodeTask, ...]
    group_size: int
    prompts: list[list[int]]
    completions: list[list[int]]
    logp_RT: Tensor
    texts: list[str]
    graded_R: Tensor
    reward_R: Tensor
    passed_R: Tensor
    finished_R: Tensor
    masked_R: Tensor
    first_choices: list[FirstChoice] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Number of sampled tokens."""
        return sum(map(len, self.completions))

    @property
    def informative(self) -> list[int]:
        """Indices of the tasks whose programs were graded differently; shaping and masked rows do not count.

        DAPO (arXiv 2503.14476, equation 11) looks at whether programs are right: if all of them are, they have nothing
        to teach, however long they are.
        """
        graded_PG = self.graded_R.view(-1, self.group_size)
        masked_PG = self.masked_R.view(-1, self.group_size)
        highest_P = graded_PG.masked_fill(masked_PG, -torch.inf).amax(1)
        lowest_P = graded_PG.masked_fill(masked_PG, torch.inf).amin(1)
        return [int(index) for index in (highest_P > lowest_P).nonzero()[:, 0]]

    def neutral_rewards(self) -> Tensor:
        """Return `reward_R` with the mean of a group's other rows in its masked rows, 0 if all are masked.

        So a masked row does not move the mean that its group is compared with.
        """
        reward_PG = self.reward_R.view(-1, self.group_size)
        masked_PG = self.masked_R.view(-1, self.group_size)
        if not bool(masked_PG.any()):
            return self.reward_R
        count_P1 = (~masked_PG).sum(1, keepdim=True)
        mean_P1 = reward_PG.masked_fill(masked_PG, 0.0).sum(1, keepdim=True) / count_P1.clamp(min=1)
        return torch.where(masked_PG, mean_P1, reward_PG).flatten()

    @property
    def ungraded(self) -> tuple[str, ...]:
        """For each program without a reward, the id of its task."""
        rows = self.graded_R.isnan().nonzero()[:, 0].tolist()
        return tuple(self.tasks[row // self.group_size].task_id for row in rows)

    def rows_of(self, group: int) -> range:
        """Return the rows of one task."""
        return range(group * self.group_size, (group + 1) * self.group_size)

    def select(self, groups: Sequence[int]) -> Rollouts:
        """Return some of the tasks, with their rows."""
        rows = [row for group in groups for row in self.rows_of(group)]
        return Rollouts(
            tuple(self.tasks[group] for group in groups),
            self.group_size,
            [self.prompts[group] for group in groups],
            [self.completions[row] for row in rows],
            self.logp_RT[rows],
            [self.texts[row] for row in rows],
            self.graded_R[rows],
            self.reward_R[rows],
            self.passed_R[rows],
            self.finished_R[rows],
            self.masked_R[rows],
            [self.first_choices[row] for row in rows] if self.first_choices else [],
        )

    @classmethod
    def joined(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """Return the tasks of several parts, one after the other."""
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
            torch.cat([part.graded_R for part in parts]),
            torch.cat([part.reward_R for part in parts]),
            torch.cat([part.passed_R for part in parts]),
            torch.cat([part.finished_R for part in parts]),
            torch.cat([part.masked_R for part in parts]),
            _joined_choices(parts),
        )


def _joined_choices(parts: Sequence[Rollouts]) -> list[FirstChoice]:
    if not any(part.first_choices for part in parts):
        return []
    return [choice for part in parts for choice in part.first_choices or [UNFORCED] * len(part.completions)]


@dataclass(frozen=True)
class RolloutSettings:
    """Settings of all rollouts of a run.

    Attributes:
        group_size: G, completions of each task.
        max_new_tokens: longest completion.
        temperature: of the sampling.
        rows_per_sample: completions to sample at once.
        allowed_mask_V: bool, the only tokens that may be sampled; all when `None`.
        truncated: what becomes of a completion that is cut off: "graded", "failed" or "masked" (`RLVRConfig`).
        make_stop: from the tasks of a call, their prompts and G to a rule that ends completions early.
    """

    group_size: int
    max_new_tokens: int
    temperature: float
    rows_per_sample: int
    allowed_mask_V: Tensor | None = None
    truncated: Literal["graded", "failed", "masked"] = "graded"
    make_stop: Callable[[Sequence[CodeTask], Sequence[Prompt], int], StopRule] | None = None


def roll_out(
    sampler: Sampler,
    loaded: LoadedModel,
    tasks: Sequence[CodeTask],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    reward: Reward,
    settings: RolloutSettings,
) -> Rollouts:
    """Sample and grade programs for these tasks; task i has the prompt `prompts[i]` and the seed `seeds[i]`."""
    tokenizer: Any = loaded.tokenizer
    ends = end_ids(loaded)
    pad = min(ends) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    group_size = settings.group_size
    count = max(1, settings.rows_per_sample // group_size)
    waiting: list[
        tuple[Sequence[CodeTask], Samples, list[list[int]], list[str], Future[list[Graded]], list[FirstChoice]]
    ] = []
    for start in range(0, len(tasks), count):
        chosen, chosen_prompts = tasks[start : start + count], prompts[start : start + count]
        forced = ForcedText.of(tokenizer, chosen_prompts)
        samples = sampler.sample(
            [prompt.ids for prompt in chosen_prompts],
            group_size=group_size,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + count]],
            eos_ids=ends,
            pad_id=pad,
            allowed_mask_V=settings.allowed_mask_V,
            stop=None if settings.make_stop is None else settings.make_stop(chosen, chosen_prompts, group_size),
            **({} if forced is None else {"forced": forced}),
        )
        completions = samples.completions()
        texts = []
        for row, ids in enumerate(completions):
            written = ids[:-1] if ids and ids[-1] in ends else ids
            texts.append(completion_text(tokenizer, chosen_prompts[row // group_size], written))
        graded = reward.submit([task for task in chosen for _ in range(group_size)], texts)
        first_choices = []
        if forced is not None:
            vocab_size = int(loaded.model.config.get_text_config().vocab_size)
            rows = enumerate(completions)
            first_choices = [forced.first_choice(row // group_size, ids, vocab_size) for row, ids in rows]
        waiting.append((chosen, samples, completions, texts, graded, first_choices))
    parts = []
    for chosen, samples, completions, texts, future, first_choices in waiting:
        grades = future.result()
        if len(grades) != len(completions):
            raise DataError(f"the reward graded {len(grades)} programs of {len(completions)}: it must grade each")
        finished_R = samples.finished_R.cpu()
        graded_R = torch.tensor([usable_reward(grade) for grade in grades], dtype=torch.float32)
        passed_R = torch.tensor([grade.passed for grade in grades])
        if settings.truncated == "failed":
            graded_R, passed_R = graded_R.masked_fill(~finished_R, 0.0), passed_R & finished_R
        masked_R = graded_R.isnan()
        if settings.truncated == "masked":
            masked_R = masked_R | ~finished_R
        part = Rollouts(
            tasks=tuple(chosen),
            group_size=group_size,
            prompts=samples.prompt_ids,
            completions=completions,
            logp_RT=samples.logp_RT.float().cpu(),
            texts=texts,
            graded_R=graded_R,
            reward_R=graded_R,
            passed_R=passed_R,
            finished_R=finished_R,
            masked_R=masked_R,
            first_choices=first_choices,
        )
        parts.append(part)
    return Rollouts.joined(parts)


def stream_seed(seed: int, step: int, *place: int) -> int:
    """Return the seed of the random stream at one place of a step."""
    return int(np.random.SeedSequence([seed, step, *place]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class TaskOrder:
    """The order of the tasks over all steps: shuffled passes over all of them, without end."""

    def __init__(self, num_tasks: int, seed: int) -> None:
        self._num_tasks = num_tasks
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, place: int) -> int:
        """Return the index of the task at a place in the order; places count from 0 over all steps."""
        epoch, within = divmod(place, self._num_tasks)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._num_tasks)
        return int(self._order[within])
