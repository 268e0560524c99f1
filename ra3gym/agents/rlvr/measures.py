"""What the updates of a batch measured: sums over micro-batches and ranks, and the means that a step records."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class UpdateMetrics:
    """Measurements of a batch's updates: means over the decisions of all ranks and updates.

    Attributes:
        loss: of the policy and the value head together.
        grad_norm: largest over the updates, before clipping; 0 if there was nothing to learn.
        clip_fraction: share of the decisions whose gradient the objective's clipping removed.
        kl: estimate of the divergence to the reference, nats per decision; `None` without a reference. A KL in the
            reward is that of the policy before the updates.
        value_loss: of the value head; `None` without one.
        mismatch: mean absolute difference between the trainer's and the sampler's log-probability, nats per decision,
            over the decisions that were trained on; `None` where the sampler's arithmetic is the trainer's.
        mismatch_max: the largest such difference.
        mismatch_cut: share of these decisions whose importance weight `off_policy_cap` cut.
    """

    loss: float
    grad_norm: float
    clip_fraction: float
    kl: float | None
    value_loss: float | None
    mismatch: float | None = None
    mismatch_max: float | None = None
    mismatch_cut: float | None = None


@dataclass(frozen=True)
class UpdateSums:
    """Sums over the decisions of a micro-batch, an update or a batch.

    Attributes:
        loss: weighted, so that the sum over an update is its loss.
        clipped: decisions that the objective clipped.
        kl: of a KL in the loss, nats.
        value: loss of the value head.
        gap: absolute differences between the trainer's and the sampler's log-probabilities, nats.
        cut: decisions whose importance weight was cut.
        compared: decisions in `gap` and `cut`.
        gap_max: the largest difference; a maximum, not a sum.
    """

    loss: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0
    value: float = 0.0
    gap: float = 0.0
    cut: float = 0.0
    compared: float = 0.0
    gap_max: float = 0.0

    def __add__(self, other: UpdateSums) -> UpdateSums:
        ours, theirs = asdict(self), asdict(other)
        sums = {name: ours[name] + theirs[name] for name in ours}
        sums["gap_max"] = max(self.gap_max, other.gap_max)
        return UpdateSums(**sums)

    def over_ranks(self, accelerator: Any) -> UpdateSums:
        """Return the sums of all ranks. Every rank must call this."""
        if accelerator.num_processes == 1:
            return self
        ranks = accelerator.gather(torch.tensor([astuple(self)], device=accelerator.device)).double().cpu()
        total = UpdateSums()
        for row in ranks.tolist():
            total += UpdateSums(*row)
        return total
