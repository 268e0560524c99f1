"""How rationales are sampled, rewarded and learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ra3gym.errors import ConfigError, UnknownNameError

Normalize = Literal["token", "line", "none"]
RewardModel = Literal["reference", "current"]


@dataclass(frozen=True)
class RationaleConfig:
    """How rationales are sampled, rewarded and learned.

    Attributes:
        group_size: G, rollouts of one trace; more lowers the variance of the baseline; 4 to 16.
        max_latent_tokens: longest comment in tokens, its line break included; what is cut off there is a format
            failure. 8 to 32 (the paper's comments have a mean below 6).
        switch_penalty: the paper's `c`, paid for each comment, in the units of the normalized log-likelihood; 0 to 0.2
            with "token". Large values lead to no comments, that is, next-token prediction.
        format_penalty: paid for a comment that is cut off, empty, or no single line; 0.1 to 2 with "token".
        normalize: what a line's log-likelihood is divided by. "token": the line's tokens, so that every line has the
            same say; "line": the mean number of tokens of the trace's lines (the ELBO up to a factor); "none": nothing
            (the ELBO itself). How the paper normalizes is not known to us.
        horizon: how many lines a decision answers for; `None`: to the end of the trace. Short ones have less noise and
            forget what a comment does for later lines.
        always_think: a comment above each line, without a choice (BRiTE's form).
        min_think: share of decisions that think whatever the model says, in training only: without it a model whose
            comments do not help yet may stop writing them before they get better. 0 to 0.3.
        reward_model: whose log-likelihood is the reward: "reference", the model as it was at the start (the E-step
            holds `pi` fixed; costs a copy and a forward pass), or "current", the model as it learns.
        kl: weight of the divergence of the policy's actions from the reference, per action in nats (GRPO's estimator);
            0 (none) to 0.1.
        temperature: of decisions and comments, 0.7 to 1.
        steps: updates.
        traces_per_step: traces rolled out for each update.
        learning_rate: AdamW's, constant after 5 steps of warm-up; around 1e-5 for a pre-trained checkpoint, 1e-3 for
            a model of 0.1M parameters.
        max_grad_norm: gradients are clipped to this norm.
    """

    group_size: int = 8
    max_latent_tokens: int = 16
    switch_penalty: float = 0.05
    format_penalty: float = 0.5
    normalize: Normalize = "token"
    horizon: int | None = None
    always_think: bool = False
    min_think: float = 0.0
    reward_model: RewardModel = "reference"
    kl: float = 0.0
    temperature: float = 1.0
    steps: int = 40
    traces_per_step: int = 4
    learning_rate: float = 1e-5
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("normalization", self.normalize, get_args(Normalize)),
            ("reward model", self.reward_model, get_args(RewardModel)),
        ):
            if value not in known:
                raise UnknownNameError(kind, value, known)
        if self.group_size < 2:
            raise ConfigError(f"group_size={self.group_size}: a leave-one-out baseline needs at least 2 rollouts")
        at_least_one = {name: getattr(self, name) for name in ("max_latent_tokens", "traces_per_step")}
        if self.horizon is not None:
            at_least_one["horizon"] = self.horizon
        for name, value in at_least_one.items():
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        for name in ("switch_penalty", "format_penalty", "kl", "steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be a number, 0 or above")
        if not 0 <= self.min_think < 1:
            raise ConfigError(f"min_think={self.min_think} must be at least 0 and below 1; see always_think for 1")
        for name in ("temperature", "learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be a positive number")


def brite_config(config: RationaleConfig | None = None) -> RationaleConfig:
    """The same with horizon 1: each line gets a comment of its own, judged by that line alone (BRiTE)."""
    return replace(config or RationaleConfig(), horizon=1, always_think=True)
