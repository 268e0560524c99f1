"""The record of a step of RLVR, the same in logs, files and callbacks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RLVRStep:
    """One step, over all processes.

    Statistics of programs are of those first sampled for the step's tasks. Programs that dynamic sampling adds count
    in `tokens` and in the statistics of the update.

    Attributes:
        step: number of the step, from 1.
        reward: mean reward of the programs that have one, after shaping.
        pass_rate: share of these programs that passed.
        informative: share of the tasks whose programs were graded differently, before shaping; with a group baseline
            and no shaping only these have a gradient.
        tokens: number of sampled tokens.
        decisions: number of tokens that RL acts on.
        length: mean length of the completions, in tokens.
        truncated: share of the completions that `max_new_tokens` cut off.
        entropy: of the policy while sampling, in nats per token, estimated by the mean of -log p of the sampled tokens.
        loss: mean over the step's updates.
        grad_norm: largest over the step's updates, before clipping.
        clip_fraction: share of the decisions whose gradient the objective's clipping removed.
        learning_rate: of the step.
        kl: divergence to the reference, nats per decision; `None` without a reference.
        value_loss: of the value head; `None` without one.
        ungraded: share of the sampled programs without a reward, which are left out of the update.
        mismatch: mean absolute difference between the trainer's and the sampler's log-probabilities, nats per decision;
            `None` where the sampler's arithmetic is the trainer's.
        mismatch_max: the largest such difference.
        mismatch_cut: share of the decisions whose importance weight `off_policy_cap` cut.
        sample_seconds: time of sampling and grading; the weights are given to the sampler in it.
        train_seconds: time of the updates.
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
    ungraded: float = 0.0
    mismatch: float | None = None
    mismatch_max: float | None = None
    mismatch_cut: float | None = None
    sample_seconds: float
    train_seconds: float
