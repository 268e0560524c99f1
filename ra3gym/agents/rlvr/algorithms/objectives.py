"""Objectives: from log-probabilities and advantages to a loss per token. Pure functions over (rows, tokens) tensors.

Each policy objective returns `(loss_RT, clipped_RT)`: the loss to *minimize*, 0 outside the decisions and not yet
reduced (`token_weights` does that), and the decisions that were clipped. Only `logp_RT` has a gradient. Entries outside
`acts_RT`, NaN and infinities included, are not read.

With the ratio `r_t = pi(a_t) / pi_old(a_t)` the gradient with respect to `log pi(a_t)` is

    policy gradient   -A_t
    PPO's clip        -A_t r_t; 0 when the ratio has left the clip range in the direction that A_t pushes it
    GSPO              -A_t s, with s the geometric mean of the row's ratios; 0 when s has left the range as above
    CISPO             -A_t clip(r_t): bounded, and never 0

On-policy, with all ratios 1, they agree.

Shape letters: see CONTRIBUTING.md (R rows, T time).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ra3gym.errors import DataError


def policy_gradient(
    logp_RT: Tensor, old_logp_RT: Tensor, advantage_RT: Tensor, acts_RT: Tensor
) -> tuple[Tensor, Tensor]:
    """`-A_t log pi(a_t)`: REINFORCE (Williams 1992). Nothing is ever clipped.

    On-policy only: `old_logp_RT` is not read, as there is no importance ratio.
    """
    _check_shapes(logp_RT, advantage_RT, acts_RT)
    loss_RT = -torch.where(acts_RT, advantage_RT, 0.0) * torch.where(acts_RT, logp_RT, 0.0)
    return loss_RT, torch.zeros_like(acts_RT)


def ppo_clip(
    logp_RT: Tensor,
    old_logp_RT: Tensor,
    advantage_RT: Tensor,
    acts_RT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`-min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)`: PPO (arXiv 1707.06347, equation 7).

    Args:
        logp_RT: under the policy in training.
        old_logp_RT: under the policy as it was when the batch was sampled.
        advantage_RT: of each decision.
        acts_RT: bool, the decisions.
        clip_low: how far a ratio may fall, 0.2.
        clip_high: how far a ratio may rise. Equal to `clip_low` in PPO and GRPO; 0.28 in DAPO ("clip-higher", arXiv
            2503.14476, equation 10), so that unlikely tokens have room to become likely.
        dual_clip: a bound on the ratio where the advantage is negative, where PPO has none: the objective is then at
            least `dual_clip * A_t` (Ye et al., arXiv 1912.09729, equation 5, with 3). None: no bound.
    """
    ratio_RT = _log_ratio(logp_RT, old_logp_RT, advantage_RT, acts_RT).exp()
    return _clipped_surrogate(ratio_RT, advantage_RT, acts_RT, clip_low, clip_high, dual_clip)


def gspo(
    logp_RT: Tensor, old_logp_RT: Tensor, advantage_RT: Tensor, acts_RT: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's clip with one ratio per row, the geometric mean of its decisions' ratios: GSPO (arXiv 2507.18071).

        s   = exp(mean over the row's decisions of log r_t)                       (equation 7)
        s_t = stop_gradient(s) * pi(a_t) / stop_gradient(pi(a_t))                 (equation 14, "GSPO-token")
        loss_t = -min(s_t A_t, clip(s_t, 1 - clip_low, 1 + clip_high) A_t)        (equation 13)

    `s_t` has the value of s and the gradient of its own token, so that advantages may differ inside a row. If they do
    not, value and gradient of the row's mean are those of the sequence form. A geometric mean moves little: the paper's
    range is 3e-4 below and 4e-4 above. Whole rows are clipped. A row must not be split over calls.
    """
    log_ratio_RT = _log_ratio(logp_RT, old_logp_RT, advantage_RT, acts_RT)
    mean_R1 = log_ratio_RT.detach().sum(1, keepdim=True) / acts_RT.sum(1, keepdim=True).clamp(min=1)
    ratio_RT = (mean_R1 + log_ratio_RT - log_ratio_RT.detach()).exp()
    return _clipped_surrogate(ratio_RT, advantage_RT, acts_RT, clip_low, clip_high, None)


def cispo(
    logp_RT: Tensor, old_logp_RT: Tensor, advantage_RT: Tensor, acts_RT: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """`-stop_gradient(clip(r_t, 1 - clip_low, 1 + clip_high)) A_t log pi(a_t)`: CISPO.

    arXiv 2506.13585, equations 4 and 5. The importance weight is clipped, not the update: every token keeps a gradient.
    The paper sets no lower bound, `clip_low=1`. `clip_high` counts from 1; the weight's bound, `1 + clip_high`, is
    TRL's `epsilon_high` for this loss. `clipped_RT` marks clipped weights.
    """
    ratio_RT = _log_ratio(logp_RT, old_logp_RT, advantage_RT, acts_RT).detach().exp()
    weight_RT = ratio_RT.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss_RT, _ = policy_gradient(logp_RT, old_logp_RT, weight_RT * advantage_RT, acts_RT)
    return loss_RT, acts_RT & (weight_RT != ratio_RT)


def truncated_importance_weights(old_logp_RT: Tensor, sampler_logp_RT: Tensor, cap: float) -> Tensor:
    """Return `min(pi_old(a_t) / mu(a_t), cap)`, elementwise and without gradient.

    As a factor of the token's loss, it corrects for tokens that come from the sampler mu (a server, another precision,
    an older policy) instead of the trainer's `pi_old`. Weights have the upper bound `cap`, about 2: it bounds the
    variance for a little bias (IMPALA, arXiv 1802.01561, section 4.1; for a sampler and a trainer that disagree: Yao
    et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").
    """
    return (old_logp_RT.detach() - sampler_logp_RT.detach()).exp().clamp(max=cap)


def value_loss(value_RT: Tensor, old_value_RT: Tensor, return_RT: Tensor, clip: float | None) -> Tensor:
    """Return half the squared error of the value head, elementwise.

    With `clip`, `max((V - R)^2, (V_old + clamp(V - V_old, -clip, clip) - R)^2) / 2`, as in OpenAI's PPO2: an estimate
    that has moved further than `clip` towards its target has no gradient. None: no clipping.

    Args:
        value_RT: the value head's estimates, with gradient.
        old_value_RT: the same when the batch was sampled.
        return_RT: targets.
        clip: in units of the return; 0.2, or None.
    """
    error_RT = (value_RT - return_RT).square()
    if clip is None:
        return 0.5 * error_RT
    held_RT = old_value_RT + (value_RT - old_value_RT).clamp(-clip, clip)
    return 0.5 * torch.maximum(error_RT, (held_RT - return_RT).square())


def _log_ratio(logp_RT: Tensor, old_logp_RT: Tensor, advantage_RT: Tensor, acts_RT: Tensor) -> Tensor:
    """Return `log pi - log pi_old` in nats, 0 outside `acts_RT`."""
    _check_shapes(logp_RT, old_logp_RT, acts_RT)
    _check_shapes(logp_RT, advantage_RT, acts_RT)
    return torch.where(acts_RT, logp_RT - old_logp_RT, 0.0)


def _clipped_surrogate(
    ratio_RT: Tensor,
    advantage_RT: Tensor,
    acts_RT: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor]:
    """Return PPO's pessimistic bound for given ratios, and the decisions where it has no gradient."""
    advantage_RT = torch.where(acts_RT, advantage_RT, 0.0)
    low, high = 1.0 - clip_low, 1.0 + clip_high
    held_RT = ratio_RT.clamp(low, high)
    clipped_RT = ((ratio_RT > high) & (advantage_RT > 0)) | ((ratio_RT < low) & (advantage_RT < 0))
    if dual_clip is not None:
        clipped_RT |= (ratio_RT > dual_clip) & (advantage_RT < 0)
        ratio_RT = ratio_RT.clamp(max=dual_clip)
    return -torch.minimum(ratio_RT * advantage_RT, held_RT * advantage_RT), clipped_RT


def _check_shapes(one_RT: Tensor, other_RT: Tensor, acts_RT: Tensor) -> None:
    if one_RT.ndim != 2 or not one_RT.shape == other_RT.shape == acts_RT.shape:
        raise DataError(
            f"tensors of shapes {tuple(one_RT.shape)}, {tuple(other_RT.shape)} and acts of {tuple(acts_RT.shape)}: "
            "give (rows, tokens) throughout"
        )
    if acts_RT.dtype != torch.bool:
        raise DataError(f"acts of dtype {acts_RT.dtype}: give a bool mask of the decisions")
