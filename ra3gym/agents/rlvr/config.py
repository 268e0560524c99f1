"""Settings of RLVR that are the same for every algorithm."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from ra3gym.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RLVRConfig:
    """Settings of RLVR that are the same for every algorithm (`ra3gym.agents.rlvr.algorithms.registry`).

    Attributes:
        steps: batches to sample and train on; an algorithm may update several times on each.
        tasks_per_step: P; a step samples P x G programs, over all processes. A multiple of their number.
        group_size: G, programs of one task; 4 to 16.
        learning_rate: of AdamW; 1e-4 to 1e-3 for the embedded model, around 1e-6 for a pre-trained checkpoint. `None`
            takes 6e-4 for models of less than 20 million parameters, 1e-6 for others.
        warmup_steps: the rate rises linearly over so many steps.
        schedule: of the rate after the warmup: constant, or falling to 0 at the last step.
        weight_decay: of AdamW; 0 to 0.1.
        max_grad_norm: gradients are clipped to this norm.
        max_new_tokens: longest completion.
        truncated: what becomes of a program that is cut off there. "graded": its reward is that of the text as it is,
            so it passes if the function was complete already; "failed": it fails, with reward 0; "masked": it is
            left out of the update and of its group's baseline.
        temperature: of the sampling, 0.6 to 1.
        reward: "passed" is 1 for all tests passed, else 0; "score" is the fraction passed (partial credit).
        stop_at_function_end: end a completion with the task's function and grade it up to there, as base models
            continue writing; otherwise a model has to end its programs itself.
        act_on: where RL acts: all, code, comments, latents, decisions (`ra3gym.agents.rlvr.algorithms.scope`).
        latent_weight: factor of the loss of latents; 0 does not train them.
        comment_weight: factor of the loss of comment lines.
        code_weight: factor of the loss of code.
        freeze_decoder: train only the output rows of the latents: how code is written under a latent stays the same.
        precision: of the arithmetic; weights and optimizer stay in float32. "auto" takes the setting of `accelerate
            launch`, else bfloat16 on a GPU and float32 elsewhere.
        rows_per_sample: programs sampled at once in a process; they are graded while the next ones are sampled. More
            is faster where memory allows.
        tokens_per_forward: tokens of one training pass; lower it when memory runs out. The result does not depend
            on it, up to rounding. `None` takes 4,096 on a CPU, 16,384 elsewhere.
        max_resamples: with dynamic sampling, how often a step may sample new tasks to replace groups without signal.
        max_ungraded: stop once more than this share of a step's programs has no reward, as the reward raised or gave
            no finite number; fewer are left out of the update. 0 stops at the first one.
        checkpoint_every: steps between checkpoints, in a run with a folder. A run that ends, is stopped or fails leaves
            a checkpoint of its last whole step, too.
        keep_checkpoints: number of checkpoints to keep, the newest.
        min_entropy: stop once the policy's entropy (nats per token) has been below this for `patience` steps while
            tasks are left to solve; 0 never stops.
        patience: see `min_entropy`.
    """

    steps: int = 40
    tasks_per_step: int = 16
    group_size: int = 8
    learning_rate: float | None = None
    warmup_steps: int = 5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_new_tokens: int = 224
    truncated: Literal["graded", "failed", "masked"] = "graded"
    temperature: float = 1.0
    reward: Literal["passed", "score"] = "passed"
    stop_at_function_end: bool = True
    act_on: str = "all"
    latent_weight: float = 1.0
    comment_weight: float = 1.0
    code_weight: float = 1.0
    freeze_decoder: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    rows_per_sample: int = 64
    tokens_per_forward: int | None = None
    max_resamples: int = 3
    max_ungraded: float = 0.25
    checkpoint_every: int = 20
    keep_checkpoints: int = 2
    min_entropy: float = 1e-3
    patience: int = 10

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if name == "tokens_per_forward" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r}: give a whole number of at least {least}")
        for name in ("learning_rate", "temperature", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name}={value}: give a positive number")
        for name in ("weight_decay", "min_entropy"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"{name}={value}: give 0 or a positive number")
        if not 0 <= self.max_ungraded <= 1:
            raise ConfigError(f"max_ungraded={self.max_ungraded}: give a share from 0 to 1")
        if self.truncated not in ("graded", "failed", "masked"):
            raise ConfigError(f"truncated={self.truncated!r}: give 'graded', 'failed' or 'masked'")
        if self.freeze_decoder and self.weight_decay:
            raise ConfigError(f"freeze_decoder with weight_decay={self.weight_decay} would shrink frozen rows: give 0")
        if self.freeze_decoder and self.act_on not in ("latents", "decisions"):
            raise ConfigError(
                f"freeze_decoder with act_on={self.act_on!r}: only latents can be learned then; give act_on='latents' "
                "or 'decisions'"
            )

    def for_model(self, model: Any) -> RLVRConfig:
        """Return the configuration with values that suit the model in the place of `None`."""
        small = sum(weight.numel() for weight in model.parameters()) < _SMALL
        on_cpu = next(model.parameters()).device.type == "cpu"
        return replace(
            self,
            learning_rate=self.learning_rate or (6e-4 if small else 1e-6),
            tokens_per_forward=self.tokens_per_forward or (4096 if on_cpu else 16384),
        )

    def rate_at(self, step: int) -> float:
        """Return the learning rate of step 1, 2, ...; call `for_model` first."""
        assert self.learning_rate is not None
        peak = max(1, self.warmup_steps)  # the step that has the full rate
        rate = self.learning_rate * min(1.0, step / peak)
        done = min(1.0, max(0.0, (step - peak) / max(1, self.steps - peak)))
        if self.schedule == "linear":
            return rate * (1 - done)
        return rate * (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else rate


_SMALL = 20_000_000

_LEAST = {
    "steps": 0,
    "tasks_per_step": 1,
    "group_size": 1,
    "warmup_steps": 0,
    "max_new_tokens": 1,
    "rows_per_sample": 1,
    "tokens_per_forward": 1,
    "max_resamples": 0,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "patience": 1,
}
