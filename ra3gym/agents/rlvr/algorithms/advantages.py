"""Advantages: how much better than expected each decision of a rollout was. Pure functions over torch tensors.

A *decision* is a token that reinforcement learning acts on: every token of a completion, or a subset of them, such as
the latents. The decision at position t covers `duration_t` tokens: itself and those before the next decision. So a row
is a semi-Markov decision process (Sutton, Precup & Singh 1999), and rewards after the decision are discounted by
`gamma ** duration_t`. If every token is a decision, the durations are 1 and all formulas are the usual ones.

The judge's reward comes with a row's last token, also in a row that is cut off at the length limit.

Shape letters: see CONTRIBUTING.md (P prompts, G members of a group, R = P x G rows, T time). The rows of prompt i are
i*G .. i*G + G - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ra3gym.errors import ConfigError, DataError

EPSILON = 1e-4
"""Added to standard deviations before dividing, as in TRL, so that nearly equal rewards have no huge advantages."""


def group_centered(reward_R: Tensor, group_size: int) -> Tensor:
    """`A_i = r_i - mean(r)` over the group, shape (R,): Dr. GRPO (arXiv 2503.20783, section 3.2).

    Exactly 0 in a group whose rewards are all equal. Raises `DataError` where the rows are not whole groups.
    """
    reward_PG = _groups(reward_R, group_size)
    # Relative to the group's first row, so that equal rewards give 0 whatever the rounding of their mean.
    reward_PG = reward_PG - reward_PG[:, :1]
    return (reward_PG - reward_PG.mean(1, keepdim=True)).flatten()


def group_standardized(reward_R: Tensor, group_size: int, *, correction: int = 0, eps: float = EPSILON) -> Tensor:
    """`A_i = (r_i - mean(r)) / (std(r) + eps)` over the group, shape (R,): GRPO (arXiv 2402.03300, section 4.1.2).

    Args:
        reward_R: rewards of the rows.
        group_size: G, at least 2 with `correction=1`.
        correction: 0 is the standard deviation of the population, 1 Bessel's. The paper does not say which it takes;
            this toolkit's published runs took 0, TRL and `torch.std` take 1. For G rewards they differ by the constant
            factor sqrt(G / (G - 1)), 7% at G = 8, which acts like a slightly different learning rate.
        eps: see `EPSILON`.

    Exactly 0 in a group whose rewards are all equal. Raises `DataError` where the rows are not whole groups.
    """
    centered_PG = group_centered(reward_R, group_size).view(-1, group_size)
    std_P1 = centered_PG.std(1, correction=correction, keepdim=True)
    return (centered_PG / (std_P1 + eps)).flatten()


def leave_one_out(reward_R: Tensor, group_size: int) -> Tensor:
    """`A_i = r_i - mean of the other G - 1 rewards`, shape (R,): RLOO (arXiv 2402.14740, section 2.3).

    The baseline does not depend on row i, so the gradient is unbiased. It is G / (G - 1) times `group_centered`.
    Raises `DataError` for groups of one, or rows that are not whole groups.
    """
    if group_size < 2:
        raise DataError(f"group_size={group_size}: leaving one out needs at least 2 samples of a prompt")
    return group_centered(reward_R, group_size) * (group_size / (group_size - 1))


def tokens_to_end(duration_RT: Tensor, acts_RT: Tensor) -> Tensor:
    """Return the number of tokens from a decision to the row's last token, shape (R, T); 0 outside `acts_RT`."""
    remaining_RT = torch.where(acts_RT, duration_RT, 0.0).flip(1).cumsum(1).flip(1)
    return torch.where(acts_RT, remaining_RT - 1.0, 0.0)


def discount_to_end(advantage_R: Tensor, duration_RT: Tensor, acts_RT: Tensor, gamma: float) -> Tensor:
    """Return each row's advantage for its decisions, `A_rt = gamma ** tokens_to_end_rt * A_r`, shape (R, T).

    At gamma = 1, the choice of all group methods, each decision has its row's advantage. 0 outside `acts_RT`.
    """
    return torch.where(acts_RT, gamma ** tokens_to_end(duration_RT, acts_RT) * advantage_R[:, None], 0.0)


def decision_rewards(
    reward_R: Tensor, duration_RT: Tensor, acts_RT: Tensor, gamma: float, penalty_RT: Tensor | None = None
) -> Tensor:
    """Return the reward during each decision, shape (R, T), 0 outside `acts_RT`.

    The row's reward comes with the last token of its last decision and is discounted to the start of that decision,
    `gamma ** (duration - 1) * r_n`. `penalty_RT` (a KL times its coefficient) is subtracted at the decision itself;
    penalties of other tokens are not read, as RL does not act on them.
    """
    last_RT = acts_RT & (acts_RT.flip(1).cumsum(1).flip(1) == 1)
    earned_RT = torch.where(last_RT, gamma ** (duration_RT - 1.0) * reward_R[:, None], 0.0)
    return earned_RT if penalty_RT is None else earned_RT - torch.where(acts_RT, penalty_RT, 0.0)


def returns_to_go(reward_RT: Tensor, duration_RT: Tensor, acts_RT: Tensor, gamma: float) -> Tensor:
    """Return the discounted sum of a decision's own and all later rewards, shape (R, T), 0 outside `acts_RT`.

    Over a row's decisions i = 0, 1, ...: `R_i = r_i + gamma ** duration_i * R_{i+1}`, and 0 after the last.
    """
    factor_RT = torch.where(acts_RT, gamma**duration_RT, 1.0)
    return torch.where(acts_RT, _backward(torch.where(acts_RT, reward_RT, 0.0), factor_RT), 0.0)


def gae(
    reward_RT: Tensor, value_RT: Tensor, duration_RT: Tensor, acts_RT: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Return generalized advantage estimates over decisions, shape (R, T), 0 outside `acts_RT`.

    Over a row's decisions i = 0, 1, ..., with V and A both 0 after the last,

        delta_i = r_i + gamma ** duration_i * V_{i+1} - V_i
        A_i     = delta_i + gamma ** duration_i * lam * A_{i+1}

    (Schulman et al., arXiv 1506.02438, equation 16, in semi-Markov form). `lam` is per decision
    and gamma per token: a long latent shortens the horizon, but not the credit of its consequences. `A + V` are the
    value head's targets.

    Args:
        reward_RT: reward of each decision (`decision_rewards`).
        value_RT: estimates before each decision; other entries are not read.
        duration_RT: tokens that each decision covers.
        acts_RT: bool, the decisions.
        gamma: discount per token.
        lam: 0 trusts the value alone (one-step errors), 1 the sampled rewards alone (returns minus the value).
    """
    value_RT = torch.where(acts_RT, value_RT, 0.0)
    # `from_here_RT` is the value of the first decision at or after t; shifted by one, it is that of the next decision.
    from_here_RT = _backward(value_RT, (~acts_RT).to(value_RT.dtype))
    next_RT = torch.nn.functional.pad(from_here_RT[:, 1:], (0, 1))
    discount_RT = gamma**duration_RT
    delta_RT = torch.where(acts_RT, reward_RT + discount_RT * next_RT - value_RT, 0.0)
    return torch.where(acts_RT, _backward(delta_RT, torch.where(acts_RT, lam * discount_RT, 1.0)), 0.0)


def batch_normalized(advantage_RT: Tensor, acts_RT: Tensor, *, eps: float = EPSILON) -> Tensor:
    """`(A - mean) / (std + eps)` over all decisions of the batch, shape (R, T), 0 outside `acts_RT`.

    REINFORCE++ (arXiv 2501.03262, its global advantage normalization). The mean counts every decision once, so a long
    row weighs more than a short one; the standard deviation is the population's. With several ranks, call this on every
    rank with the gathered rows of all ranks.
    """
    chosen = advantage_RT[acts_RT]
    if chosen.numel() == 0:
        return torch.zeros_like(advantage_RT)
    # As in `group_centered`: advantages that are all equal become exactly 0.
    shifted_RT = advantage_RT - chosen[0]
    mean, std = (chosen - chosen[0]).mean(), chosen.std(correction=0)
    return torch.where(acts_RT, (shifted_RT - mean) / (std + eps), 0.0)


def soft_overlong_punishment(length_R: Tensor, *, max_new_tokens: int, buffer: int | float) -> Tensor:
    """Return what to add to the rewards of long completions, float32 in [-1, 0], shape (R,).

    DAPO (arXiv 2503.14476, equation 13): 0 up to `max_new_tokens - buffer` tokens, then linearly down to -1 at
    `max_new_tokens`. The end token counts.

    Args:
        length_R: tokens of each completion.
        max_new_tokens: the limit at which a completion is cut off.
        buffer: tokens over which the reward falls (int), or a share of `max_new_tokens` below 1 (float); the paper has
            4096 of 20480, a share of 0.2. 0 punishes nothing.

    Raises:
        ConfigError: a buffer below 0 or longer than `max_new_tokens`.
    """
    tokens = buffer * max_new_tokens if 0 < buffer < 1 else buffer
    if not 0 <= tokens <= max_new_tokens:
        raise ConfigError(
            f"an overlong buffer of {buffer} with max_new_tokens={max_new_tokens}: give 0 to max_new_tokens tokens, or "
            "a share of them below 1 (0.2 in the DAPO paper)"
        )
    if tokens == 0:
        return torch.zeros_like(length_R, dtype=torch.float32)
    over_R = length_R.float() - (max_new_tokens - tokens)
    return -(over_R / tokens).clamp(0.0, 1.0)


def _groups(reward_R: Tensor, group_size: int) -> Tensor:
    """Return the rewards as (P, G)."""
    if reward_R.ndim != 1 or group_size < 1 or len(reward_R) % group_size:
        raise DataError(
            f"rewards of shape {tuple(reward_R.shape)} are not whole groups of {group_size}: give (P * G,) rewards, "
            "the G samples of a prompt one after the other"
        )
    return reward_R.view(-1, group_size)


def _backward(term_RT: Tensor, factor_RT: Tensor) -> Tensor:
    """Return `x_t = term_t + factor_t * x_{t+1}`, with x = 0 after the last column, shape (R, T).

    It doubles: after k rounds x_t holds the terms of 2^k columns, so T columns take log2(T) tensor operations instead
    of T (ten launches on a GPU for 1024 tokens). Factors in [0, 1] keep it stable.
    """
    reach, T = 1, term_RT.shape[1]
    while reach < T:
        pad = (0, reach)
        term_RT = term_RT + factor_RT * torch.nn.functional.pad(term_RT[:, reach:], pad)
        factor_RT = factor_RT * torch.nn.functional.pad(factor_RT[:, reach:], pad)
        reach *= 2
    return term_RT
