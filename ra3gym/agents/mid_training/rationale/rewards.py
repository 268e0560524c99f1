"""What a rollout earns at each place, and what a decision answers for. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from ra3gym.agents.mid_training.rationale.config import RationaleConfig


def step_rewards(
    logp_GQ: Tensor, tokens_Q: Tensor, thinks_GQ: Tensor, failed_GQ: Tensor, config: RationaleConfig
) -> Tensor:
    """Return the reward of each place, shape (G, Q): its line's normalized log-likelihood less the comment's costs.

    Args:
        logp_GQ: nats of the expert's text at each place.
        tokens_Q: tokens of that text without a comment.
        thinks_GQ: bool; a comment was written.
        failed_GQ: bool; it has the wrong form.
        config: `normalize`, `switch_penalty` and `format_penalty`.
    """
    scale_Q = {"token": tokens_Q.float(), "line": tokens_Q.float().mean(), "none": torch.ones(())}[config.normalize]
    costs_GQ = config.switch_penalty * thinks_GQ.float() + config.format_penalty * failed_GQ.float()
    return logp_GQ / scale_Q - costs_GQ


def rewards_to_go(reward_GQ: Tensor, horizon: int | None) -> Tensor:
    """Return `R_q = r_q + ... + r_{q+h-1}` along the last axis, up to the end of the trace: a decision answers for it.

    With `horizon=None` to the end: the rewards of a segment up to its next switch, plus all later segments. With
    `horizon=1` the line alone (BRiTE).
    """
    to_end_GQ = reward_GQ.flip(-1).cumsum(-1).flip(-1)
    if horizon is None or horizon >= reward_GQ.shape[-1]:
        return to_end_GQ
    beyond_GQ = torch.nn.functional.pad(to_end_GQ[..., horizon:], (0, horizon))
    return to_end_GQ - beyond_GQ
