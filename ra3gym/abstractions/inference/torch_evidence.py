"""The log evidence of traces under a sticky prior as a differentiable torch function.

Call it to train a network that gives emissions on the log evidence itself, by gradient descent in place of EM: exact,
on any device. (Nothing in this package does so: its E-steps keep emissions fixed.)

On the CPU the numba kernels of `posterior` do the work. On other devices it is the recursions of `posterior_kernels`,
all traces at once, line by line to the end of the longest. In both cases the gradient is exact and autograd records no
single step: for the log emissions the gradient is the posterior marginals (Fisher's identity), for alpha it is the
expected keeps over alpha minus the expected draws over 1 - alpha.

Shape letters: see CONTRIBUTING.md (B traces, T lines of the longest).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ra3gym.abstractions.inference.posterior import LatentChain, posterior
from ra3gym.errors import DataError


def sticky_log_evidence(log_emission_BTK: Tensor, length_B: Tensor, alpha: Tensor | float) -> Tensor:
    """Return `log p(trace)` in nats, `(B,)`, under the sticky prior `alpha` with uniform fresh latents.

    It is computed in float64 and returned in the dtype of the emissions. It is differentiable, once, in emissions and
    alpha.

    Args:
        log_emission_BTK: `log p(line | latent)`; values after the end of a trace are ignored.
        length_B: lines of each trace, at least 1.
        alpha: in (0, 1); a tensor of one element to learn it.

    Raises:
        DataError: shapes that do not fit, NaN, or a trace that is impossible under every path.
    """
    if log_emission_BTK.ndim != 3 or length_B.shape != log_emission_BTK.shape[:1]:
        raise DataError(
            f"emissions of shape {tuple(log_emission_BTK.shape)} and lengths of shape {tuple(length_B.shape)}: give "
            "(traces, lines, latents) and (traces,)"
        )
    if int(length_B.min()) < 1 or int(length_B.max()) > log_emission_BTK.shape[1]:
        raise DataError(f"lengths must lie in 1 to {log_emission_BTK.shape[1]}: {length_B.tolist()}")
    alpha = torch.as_tensor(alpha, dtype=torch.float64, device=log_emission_BTK.device)
    if not 0.0 < alpha.item() < 1.0:
        raise DataError(f"alpha={alpha.item()} must lie in (0, 1)")
    evidence: Tensor = _LogEvidence.apply(log_emission_BTK, length_B, alpha)
    return evidence


class _LogEvidence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_emission_BTK: Tensor, length_B: Tensor, alpha: Tensor) -> Tensor:
        infer = _on_cpu if log_emission_BTK.device.type == "cpu" else _on_device
        evidence_B, marginal_BTK, draws_B = infer(log_emission_BTK.detach(), length_B, alpha.item())
        ctx.save_for_backward(marginal_BTK.to(log_emission_BTK.dtype), draws_B, length_B, alpha)
        return evidence_B.to(log_emission_BTK.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_B: Tensor) -> tuple[Tensor, None, Tensor]:
        marginal_BTK, draws_B, length_B, alpha = ctx.saved_tensors
        keeps_B = length_B - 1 - draws_B
        of_alpha = (gradient_B.double() * (keeps_B / alpha - draws_B / (1 - alpha))).sum()
        return gradient_B[:, None, None] * marginal_BTK, None, of_alpha


def _on_cpu(log_emission_BTK: Tensor, length_B: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return evidence, marginals (0 after the end of a trace) and expected fresh draws after the first line."""
    B, T, K = log_emission_BTK.shape
    lengths = length_B.numpy()
    inside_BT = np.arange(T) < lengths[:, None]
    full = bool(inside_BT.all())  # then no line has to be selected, and results are written in place
    emission_BTK = log_emission_BTK.numpy()
    chain = LatentChain(
        log_emission_UK=emission_BTK.reshape(-1, K) if full else emission_BTK[inside_BT],
        row_N=np.arange(int(lengths.sum())),
        keep_N=np.full(int(lengths.sum()), alpha),
        fresh_PK=np.full((1, K), 1.0 / K),
        fresh_row_M=np.zeros(B, dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )
    marginal_BTK = np.empty((B, T, K)) if full else np.zeros((B, T, K))
    result = posterior(chain, out=marginal_BTK.reshape(-1, K) if full else None)
    if not full:
        marginal_BTK[inside_BT] = result.marginal_NK
    draws_B = np.add.reduceat(result.switch_N, chain.offsets[:-1]) - 1.0
    return torch.from_numpy(result.log_evidence_M), torch.from_numpy(marginal_BTK), torch.from_numpy(draws_B)


def _on_device(log_emission_BTK: Tensor, length_B: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `_on_cpu`. After the end of a trace, every latent emits with probability 1: such lines change nothing."""
    B, T, K = log_emission_BTK.shape
    inside_TB = torch.arange(T, device=length_B.device)[:, None] < length_B
    log_b_TBK = log_emission_BTK.double().transpose(0, 1)
    log_b_TBK = torch.where(inside_TB[:, :, None], log_b_TBK, 0.0)
    highest_TB = log_b_TBK.amax(2)
    if not bool(torch.isfinite(highest_TB).all()):
        raise DataError(
            "a trace is impossible under every path, or its emissions hold NaN or +inf: no posterior exists"
        )
    q_TBK = torch.exp(log_b_TBK - highest_TB[:, :, None])
    marginal_TBK = torch.empty_like(q_TBK)
    total_TB1 = torch.empty(T, B, 1, dtype=q_TBK.dtype, device=q_TBK.device)
    predicted_BK = torch.full_like(q_TBK[0], 1.0 / K)
    for t in range(T):
        joint_BK = q_TBK[t] * predicted_BK
        torch.sum(joint_BK, 1, keepdim=True, out=total_TB1[t])
        torch.div(joint_BK, total_TB1[t], out=marginal_TBK[t])
        predicted_BK = torch.add((1.0 - alpha) / K, marginal_TBK[t], alpha=alpha)
    evidence_B = (torch.log(total_TB1[:, :, 0]) + highest_TB).sum(0)
    q_TBK /= total_TB1
    drawn_TB1 = torch.zeros_like(total_TB1)
    beta_BK = torch.ones_like(predicted_BK)
    for t in range(T - 1, 0, -1):  # marginal_TBK[t] is smoothed already; q_TBK[t] becomes the q of `posterior_kernels`
        q_TBK[t] *= beta_BK
        torch.mul(q_TBK[t].mean(1, keepdim=True), 1.0 - alpha, out=drawn_TB1[t])
        beta_BK = torch.add(drawn_TB1[t], q_TBK[t], alpha=alpha)
        marginal_TBK[t - 1] *= beta_BK
    draws_B = (drawn_TB1[:, :, 0] * inside_TB).sum(0)
    return evidence_B, (marginal_TBK * inside_TB[:, :, None]).transpose(0, 1), draws_B
