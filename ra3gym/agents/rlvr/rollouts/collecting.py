"""What a step is trained on: its tasks, their rollouts, and others in the place of those that teach nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ra3gym.agents.rlvr.algorithms.advantages import soft_overlong_punishment
from ra3gym.agents.rlvr.algorithms.registry import Algorithm
from ra3gym.agents.rlvr.config import RLVRConfig
from ra3gym.agents.rlvr.rollouts.rewards import Reward
from ra3gym.agents.rlvr.rollouts.rollouts import Rollouts, RolloutSettings, TaskOrder, roll_out, stream_seed
from ra3gym.agents.rlvr.rollouts.sampler import Sampler
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask


@dataclass(frozen=True)
class Collected:
    """A process's share of a step."""

    rollouts: Rollouts
    """To train on."""
    first: Rollouts
    """As sampled for the step's own tasks; the same but with dynamic sampling."""
    tokens: int
    """Sampled in all."""


class Collector:
    """Collects a process's share of each step.

    Args:
        tasks: of the run.
        sampler, reward: where programs come from, and what grades them.
        loaded: the model whose tokenizer and end tokens count.
        settings: of the rollouts.
        algorithm: its overlong punishment, and whether it samples dynamically.
        config: tasks per step, and how often a step may sample anew.
        seed: of the run.
        rank, num_ranks: which share; `config.tasks_per_step` must divide by the second.
    """

    def __init__(
        self,
        tasks: Sequence[CodeTask],
        sampler: Sampler,
        reward: Reward,
        loaded: LoadedModel,
        settings: RolloutSettings,
        algorithm: Algorithm,
        config: RLVRConfig,
        *,
        seed: int,
        rank: int,
        num_ranks: int,
    ) -> None:
        self._tasks, self._sampler, self._reward, self._loaded = tasks, sampler, reward, loaded
        self._settings, self._algorithm, self._config, self._seed = settings, algorithm, config, seed
        self._order = TaskOrder(len(tasks), seed)
        count = config.tasks_per_step // num_ranks
        self._places = range(count * rank, count * (rank + 1))

    def collect(self, step: int) -> Collected:
        """The rollouts of step 1, 2, ...; with dynamic sampling, groups without signal are replaced where it can."""
        begin = (step - 1) * self._config.tasks_per_step
        chosen = [self._order[begin + place] for place in self._places]
        first = self._roll_out(chosen, [stream_seed(self._seed, step, place) for place in self._places])
        if not self._algorithm.dynamic_sampling:
            return Collected(first, first, first.num_tokens)
        count, tokens, good = len(chosen), first.num_tokens, first.informative
        kept, spare = first.select(good), [index for index in range(count) if index not in good]
        for attempt in range(1, self._config.max_resamples + 1):
            missing = count - len(kept.tasks)
            if missing == 0:
                break
            rng = np.random.default_rng([self._seed, step, self._places.start, attempt])
            fresh = self._roll_out(
                rng.integers(len(self._tasks), size=missing).tolist(),
                [stream_seed(self._seed, step, place, attempt) for place in self._places[:missing]],
            )
            tokens += fresh.num_tokens
            kept = Rollouts.joined([kept, fresh.select(fresh.informative)])
        rest = first.select(spare[: count - len(kept.tasks)])
        return Collected(Rollouts.joined([kept, rest]), first, tokens)

    def _roll_out(self, chosen: Sequence[int], seeds: Sequence[int]) -> Rollouts:
        tasks = [self._tasks[index] for index in chosen]
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        rollouts = roll_out(self._sampler, tokenizer, model, tasks, seeds, self._reward, self._settings)
        punishment_R = soft_overlong_punishment(
            torch.tensor([len(ids) for ids in rollouts.completions]),
            max_new_tokens=self._config.max_new_tokens,
            buffer=self._algorithm.overlong_buffer,
        )
        return replace(rollouts, reward_R=rollouts.reward_R + punishment_R)
