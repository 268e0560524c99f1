"""Objectives: from log-probabilities and advantages to a loss per token. Pure functions over (rows, tokens) tensors.

Each policy objective returns `(loss_NT, clipped_NT)`: the loss to *minimise*, 0 outside the decisions and not yet
reduced (`token_weights` does that), and where a bound took hold. Only `logp_NT` carries a gradient; what the tensors
hold outside `acts_NT`, NaN and infinities included, is not read.

With the ratio `r_t = pi(a_t) / pi_old(a_t)` the gradient with respect to `log pi(a_t)` is

    policy gradient   -A_t
    PPO's clip        -A_t r_t, and 0 where the ratio has left the clip range in the direction that A_t pushes it
    GSPO              -A_t s,   s the geometric mean of the row's ratios; 0 where s has left the range as above
    CISPO             -A_t clip(r_t): bounded, and never 0

so that on-policy, with all ratios 1, they agree.

Shape suffixes: N rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ra3gym.errors import DataError


def policy_gradient(logp_NT: Tensor, advantage_NT: Tensor, acts_NT: Tensor) -> tuple[Tensor, Tensor]:
    """`-A_t log pi(a_t)`: REINFORCE (Williams 1992). On-policy only: it knows no ratio. Nothing is ever clipped."""
    _check_shapes(logp_NT, advantage_NT, acts_NT)
    loss_NT = -torch.where(acts_NT, advantage_NT, 0.0) * torch.where(acts_NT, logp_NT, 0.0)
    return loss_NT, torch.zeros_like(acts_NT)


def ppo_clip(
    logp_NT: Tensor,
    old_logp_NT: Tensor,
    advantage_NT: Tensor,
    acts_NT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`-min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)`: PPO (arXiv 1707.06347, equation 7).

    Args:
        logp_NT: under the policy that is trained.
        old_logp_NT: under the policy as it was when the batch was sampled.
        advantage_NT: of each decision.
        acts_NT: bool, the decisions.
        clip_low: how far a ratio may fall, 0.2.
        clip_high: how far it may rise. Equal to `clip_low` in PPO and GRPO; 0.28 in DAPO ("clip-higher", arXiv
            2503.14476, equation 10), so that unlikely tokens have room to become likely.
        dual_clip: a bound on the ratio where the advantage is negative, which PPO lets grow without one: the objective
            is then at least `dual_clip * A_t` (Ye et al., arXiv 1912.09729, equation 5); 3 there, None for no bound.
    """
    ratio_NT = _log_ratio(logp_NT, old_logp_NT, advantage_NT, acts_NT).exp()
    return _clipped_surrogate(ratio_NT, advantage_NT, acts_NT, clip_low, clip_high, dual_clip)


def gspo(
    logp_NT: Tensor, old_logp_NT: Tensor, advantage_NT: Tensor, acts_NT: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's clip with one ratio per row, the geometric mean of its decisions' ratios: GSPO (arXiv 2507.18071).

        s   = exp(mean over the row's decisions of log r_t)                       (equation 7)
        s_t = stop_gradient(s) * pi(a_t) / stop_gradient(pi(a_t))                 (equation 14, "GSPO-token")
        loss_t = -min(s_t A_t, clip(s_t, 1 - clip_low, 1 + clip_high) A_t)        (equation 13)

    `s_t` has the value of s, but the gradient of its own token, so that advantages may differ inside a row; where they
    do not, value and gradient of the row's mean are those of the sequence form. A geometric mean moves little: the
    paper's range is 3e-4 below and 4e-4 above. Whole rows are clipped. A row must not be split over calls.
    """
    log_ratio_NT = _log_ratio(logp_NT, old_logp_NT, advantage_NT, acts_NT)
    mean_N1 = log_ratio_NT.detach().sum(1, keepdim=True) / acts_NT.sum(1, keepdim=True).clamp(min=1)
    ratio_NT = (mean_N1 + log_ratio_NT - log_ratio_NT.detach()).exp()
    return _clipped_surrogate(ratio_NT, advantage_NT, acts_NT, clip_low, clip_high, None)


def cispo(
    logp_NT: Tensor, old_logp_NT: Tensor, advantage_NT: Tensor, acts_NT: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """`-stop_gradient(clip(r_t, 1 - clip_low, 1 + clip_high)) A_t log pi(a_t)`: CISPO.

    arXiv 2506.13585, equations 4 and 5. The importance weight is clipped, not the update: every token keeps a gradient.
    The paper sets no lower bound, `clip_low=1`. `clip_high` counts from 1 as everywhere here; the weight's bound,
    `1 + clip_high`, is what TRL's `epsilon_high` means for this loss. `clipped_NT` says where the weight was clipped.
    """
    ratio_NT = _log_ratio(logp_NT, old_logp_NT, advantage_NT, acts_NT).detach().exp()
    weight_NT = ratio_NT.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss_NT, _ = policy_gradient(logp_NT, weight_NT * advantage_NT, acts_NT)
    return loss_NT, acts_NT & (weight_NT != ratio_NT)


def truncated_importance_weights(old_logp_NT: Tensor, sampler_logp_NT: Tensor, cap: float) -> Tensor:
    """`min(pi_old(a_t) / mu(a_t), cap)`, elementwise and without gradient.

    Times the token's loss, it corrects that the tokens come from the sampler mu (a server, another precision, an older
    policy) and not from the trainer's `pi_old`. Weights are cut at `cap`, about 2, and not below: a bounded variance
    for a little bias (IMPALA, arXiv 1802.01561, section 4.1; for a sampler and a trainer that disagree: Yao et al.
    2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").
    """
    return (old_logp_NT.detach() - sampler_logp_NT.detach()).exp().clamp(max=cap)


def value_loss(value_NT: Tensor, old_value_NT: Tensor, return_NT: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of the value head, elementwise.

    With `clip`, `max((V - R)^2, (V_old + clamp(V - V_old, -clip, clip) - R)^2) / 2`, as in OpenAI's PPO2: an estimate
    that has moved further than `clip` towards its target learns no more from this batch. None: no clipping.

    Args:
        value_NT: the value head's estimates, with gradient.
        old_value_NT: the same when the batch was sampled.
        return_NT: targets.
        clip: in units of the return; 0.2, or None.
    """
    error_NT = (value_NT - return_NT).square()
    if clip is None:
        return 0.5 * error_NT
    held_NT = old_value_NT + (value_NT - old_value_NT).clamp(-clip, clip)
    return 0.5 * torch.maximum(error_NT, (held_NT - return_NT).square())


def _log_ratio(logp_NT: Tensor, old_logp_NT: Tensor, advantage_NT: Tensor, acts_NT: Tensor) -> Tensor:
    """`log pi - log pi_old` in nats, 0 outside `acts_NT`."""
    _check_shapes(logp_NT, old_logp_NT, acts_NT)
    _check_shapes(logp_NT, advantage_NT, acts_NT)
    return torch.where(acts_NT, logp_NT - old_logp_NT, 0.0)


def _clipped_surrogate(
    ratio_NT: Tensor,
    advantage_NT: Tensor,
    acts_NT: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic bound for given ratios, and where it has no gradient."""
    advantage_NT = torch.where(acts_NT, advantage_NT, 0.0)
    low, high = 1.0 - clip_low, 1.0 + clip_high
    held_NT = ratio_NT.clamp(low, high)
    clipped_NT = ((ratio_NT > high) & (advantage_NT > 0)) | ((ratio_NT < low) & (advantage_NT < 0))
    if dual_clip is not None:
        clipped_NT |= (ratio_NT > dual_clip) & (advantage_NT < 0)
        ratio_NT = ratio_NT.clamp(max=dual_clip)
    return -torch.minimum(ratio_NT * advantage_NT, held_NT * advantage_NT), clipped_NT


def _check_shapes(one_NT: Tensor, other_NT: Tensor, acts_NT: Tensor) -> None:
    if one_NT.ndim != 2 or not one_NT.shape == other_NT.shape == acts_NT.shape:
        raise DataError(
            f"tensors of shapes {tuple(one_NT.shape)}, {tuple(other_NT.shape)} and acts of {tuple(acts_NT.shape)}: "
            "give (rows, tokens) throughout"
        )
    if acts_NT.dtype != torch.bool:
        raise DataError(f"acts of dtype {acts_NT.dtype}: give a bool mask of the decisions")
