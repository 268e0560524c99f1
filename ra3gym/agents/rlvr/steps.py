"""What a step of RLVR tells: one record per step, the same in logs, files and callbacks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RLVRStep:
    """One step, over all processes.

    What is said of programs is said of those first sampled: what dynamic sampling puts in their place only counts in
    `tokens` and in what the update did.

    Attributes:
        step: its number, from 1.
        reward: mean reward of its programs, after shaping.
        pass_rate: share of them that passed.
        informative: share of the tasks whose programs were rewarded differently: the others teach group baselines
            nothing.
        tokens: sampled.
        decisions: tokens that RL acted on.
        length: mean length of the completions, in tokens.
        truncated: share of the completions that `max_new_tokens` cut off.
        entropy: of the policy while sampling, estimated by the mean of -log p of the tokens; nats per token.
        loss: mean over the step's updates.
        grad_norm: largest over the step's updates, ahead of clipping.
        clip_fraction: share of the decisions whose gradient clipping took away.
        learning_rate: of the step.
        kl: divergence to the reference, nats per decision; `None` without a reference.
        value_loss: of the value head; `None` without one.
        sample_seconds, train_seconds: sampling and grading; training.
    """

    step: int
    reward: float
    pass_rate: float
    informative: float
    tokens: int
    decisions: int
    length: float
    truncated: float
    entropy: float
    loss: float
    grad_norm: float
    clip_fraction: float
    learning_rate: float
    kl: float | None = None
    value_loss: float | None = None
    sample_seconds: float
    train_seconds: float
