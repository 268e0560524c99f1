"""RLVR: policy gradient on unit-test rewards with group baselines (GRPO, arXiv 2402.03300).

For each task, G programs are sampled; program i gets reward r_i from the judge and the advantage

    A_i = (r_i - mean_j r_j) / (std_j r_j + 1e-4),

and the loss is the token mean of `-A_i log pi(token)` over all sampled tokens, latents included. One update follows
each batch, so sampling is on-policy: the importance ratio is 1 and needs no clipping.

Shape suffixes: P tasks a step, G samples of each, N = P * G, T new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ra3gym.errors import ConfigError, DataError
from ra3gym.lm import complete, completion_logprobs, encode_prompt, strip_latents
from ra3gym.tasks import CodeTask
from ra3gym.verify import Judge, Verdict


@dataclass(frozen=True)
class RLVRConfig:
    """How RLVR runs.

    Attributes:
        steps: updates.
        tasks_per_step: P; a step samples P x G programs.
        group_size: G, programs of one task; 4 to 16.
        learning_rate: constant after 5 steps of warm-up; 1e-4 to 1e-3 for the embedded model, around 1e-6 for a
            pre-trained checkpoint.
        max_new_tokens: longest completion; a program cut off there fails.
        temperature: of the sampling, 0.8 to 1.
        max_grad_norm: gradients are clipped to this norm.
    """

    steps: int = 40
    tasks_per_step: int = 16
    group_size: int = 8
    learning_rate: float = 6e-4
    max_new_tokens: int = 224
    temperature: float = 1.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ConfigError(f"group_size={self.group_size}: a group baseline needs at least 2 samples of a task")
        if self.steps < 0 or self.tasks_per_step < 1 or self.learning_rate <= 0:
            raise ConfigError(
                f"steps={self.steps}, tasks_per_step={self.tasks_per_step}, learning_rate={self.learning_rate}: give "
                "at least 0, at least 1, and a positive number"
            )
        if self.temperature <= 0 or self.max_new_tokens < 1:
            raise ConfigError(
                f"temperature={self.temperature}, max_new_tokens={self.max_new_tokens}: groups need programs that "
                "differ and have tokens; give a positive temperature and at least 1 token"
            )


@dataclass(frozen=True)
class RLVRStep:
    """One update: its number (from 1), mean reward and tokens sampled."""

    step: int
    reward: float
    tokens: int


@dataclass(frozen=True)
class SampledPrograms:
    """Completions of tasks and what the judge said of them; row n belongs to task `n // group_size`."""

    completions: tuple[list[int], ...]
    """Token ids, the end of text included where there is one."""
    texts: tuple[str, ...]
    """The completions as text, latents included, the end of text removed."""
    verdicts: tuple[Verdict, ...]

    @property
    def passed_N(self) -> Tensor:
        """float32, 1 where all tests passed."""
        return torch.tensor([float(verdict.passed) for verdict in self.verdicts])

    @classmethod
    def joined(cls, parts: Sequence[SampledPrograms]) -> SampledPrograms:
        """The rows of several batches, one after the other."""
        return cls(
            tuple(row for part in parts for row in part.completions),
            tuple(row for part in parts for row in part.texts),
            tuple(row for part in parts for row in part.verdicts),
        )


def sample_programs(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[CodeTask],
    judge: Judge,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> SampledPrograms:
    """Sample `group_size` programs for each task and judge them, latents stripped."""
    found = complete(
        model,
        tokenizer,
        [task.prompt for task in tasks],
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        generator=generator,
    )
    pairs = [
        (tasks[n // group_size], tasks[n // group_size].prompt + strip_latents(text))
        for n, text in enumerate(found.texts)
    ]
    return SampledPrograms(found.ids, found.texts, tuple(judge.grade(pairs)))


def group_advantages(reward_N: Tensor, group_size: int) -> Tensor:
    """GRPO's advantages: rewards standardised within each group of `group_size` rows, shape (N,)."""
    reward_PG = reward_N.view(-1, group_size)
    centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
    return (centred_PG / (reward_PG.std(1, correction=0, keepdim=True) + 1e-4)).flatten()


def train_rlvr(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[CodeTask],
    judge: Judge,
    config: RLVRConfig,
    *,
    seed: int,
    on_step: Callable[[RLVRStep], None] = lambda _: None,
) -> list[RLVRStep]:
    """Train `model` in place; returns what happened at each step. The same seed gives the same run.

    Each step draws its tasks without replacement (with, if there are fewer than a step needs).
    Raises `DataError` when there are no tasks.
    """
    if not tasks:
        raise DataError("there are no tasks to train on")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
    history: list[RLVRStep] = []
    for step in range(1, config.steps + 1):
        order = torch.randperm(len(tasks), generator=generator).repeat(1 + config.tasks_per_step // len(tasks))
        chosen = [tasks[index] for index in order[: config.tasks_per_step].tolist()]
        programs = sample_programs(
            model,
            tokenizer,
            chosen,
            judge,
            group_size=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            generator=generator,
        )
        advantage_N = group_advantages(programs.passed_N, config.group_size)
        if bool(advantage_N.any()):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, step / 5)
            prompts = [encode_prompt(tokenizer, task.prompt) for task in chosen]
            _update(model, optimizer, prompts, programs, advantage_N, config)
        record = RLVRStep(step, float(programs.passed_N.mean()), sum(map(len, programs.completions)))
        history.append(record)
        on_step(record)
    return history


def _update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    prompts: Sequence[list[int]],
    programs: SampledPrograms,
    advantage_N: Tensor,
    config: RLVRConfig,
) -> None:
    """One policy-gradient step on the rows whose advantage is not zero (the others have no gradient)."""
    rows = advantage_N.nonzero()[:, 0].tolist()
    model.train()
    logp_BT, mask_BT = completion_logprobs(
        model,
        [prompts[row // config.group_size] for row in rows],
        [programs.completions[row] for row in rows],
        config.temperature,
    )
    num_tokens = sum(map(len, programs.completions))
    loss = -(advantage_N[rows][:, None] * logp_BT * mask_BT).sum() / num_tokens
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    model.eval()
