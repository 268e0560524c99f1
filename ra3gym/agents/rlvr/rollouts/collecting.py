"""The rollouts that a step trains on; with dynamic sampling, groups without signal are replaced."""

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
from ra3gym.lm.rendering import Prompt, cut_prompt
from ra3gym.tasks import CodeTask


@dataclass(frozen=True)
class Collected:
    """A process's share of a step.

    Attributes:
        rollouts: to train on.
        first: as first sampled for the step's tasks; differs from `rollouts` only with dynamic sampling.
        tokens: number of sampled tokens, replaced rollouts included.
        rows: number of sampled programs, likewise.
        ungraded: for each of them without a reward, the id of its task.
    """

    rollouts: Rollouts
    first: Rollouts
    tokens: int
    rows: int
    ungraded: tuple[str, ...]


class Collector:
    """Collects a process's share of each step.

    Args:
        tasks: of the run.
        sampler: samples the programs.
        reward: grades them.
        loaded: the policy, for its tokenizer and end tokens.
        settings: of the rollouts.
        algorithm: says how overlong programs are punished, and whether sampling is dynamic.
        config: says how many tasks a step has, and how often it may sample again.
        seed: of the run.
        rank: which share.
        num_ranks: number of shares; must divide `config.tasks_per_step`.
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
        self._prompts: dict[int, Prompt] = {}
        count = config.tasks_per_step // num_ranks
        self._places = range(count * rank, count * (rank + 1))

    def collect(self, step: int) -> Collected:
        """Return the rollouts of step 1, 2, ...; groups without signal stay only when no replacement was found."""
        begin = (step - 1) * self._config.tasks_per_step
        chosen = [self._order[begin + place] for place in self._places]
        first = self._roll_out(chosen, [stream_seed(self._seed, step, place) for place in self._places])
        if not self._algorithm.dynamic_sampling:
            return Collected(first, first, first.num_tokens, len(first.completions), first.ungraded)
        count, informative, sampled = len(chosen), first.informative, [first]
        kept = first.select(informative)
        for attempt in range(1, self._config.max_resamples + 1):
            missing = count - len(kept.tasks)
            if missing == 0:
                break
            rng = np.random.default_rng([self._seed, step, self._places.start, attempt])
            fresh = self._roll_out(
                rng.integers(len(self._tasks), size=missing).tolist(),
                [stream_seed(self._seed, step, place, attempt) for place in self._places[:missing]],
            )
            sampled.append(fresh)
            kept = Rollouts.joined([kept, fresh.select(fresh.informative)])
        others = [group for group in range(count) if group not in informative]
        rest = first.select(others[: count - len(kept.tasks)])
        return Collected(
            Rollouts.joined([kept, rest]),
            first,
            tokens=sum(part.num_tokens for part in sampled),
            rows=sum(len(part.completions) for part in sampled),
            ungraded=tuple(task for part in sampled for task in part.ungraded),
        )

    def _roll_out(self, chosen: Sequence[int], seeds: Sequence[int]) -> Rollouts:
        tasks = [self._tasks[index] for index in chosen]
        prompts = [self._prompt(index) for index in chosen]
        rollouts = roll_out(self._sampler, self._loaded, tasks, prompts, seeds, self._reward, self._settings)
        punishment_R = soft_overlong_punishment(
            torch.tensor([len(ids) for ids in rollouts.completions]),
            max_new_tokens=self._config.max_new_tokens,
            buffer=self._algorithm.overlong_buffer,
        )
        return replace(rollouts, reward_R=rollouts.reward_R + punishment_R)

    def _prompt(self, index: int) -> Prompt:
        """Return a task's prompt as tokens, encoded once per run."""
        if index not in self._prompts:
            self._prompts[index] = cut_prompt(self._loaded.tokenizer, self._tasks[index].prompt)
        return self._prompts[index]
