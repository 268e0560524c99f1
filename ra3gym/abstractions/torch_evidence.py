"""The log evidence of traces under a sticky prior as a torch function that differentiates.

On the CPU the numba kernels of `posterior` do the work; on other devices a loop over the lines of the longest trace,
all traces at once. Either way the gradient is exact and nothing is recorded step by step: for the log emissions it is
the posterior marginals (Fisher's identity), for alpha the expected keeps over alpha less the draws over 1 - alpha.

Shape suffixes: B traces, T lines of the longest, K latents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ra3gym.abstractions.posterior import LatentChain, posterior
from ra3gym.errors import DataError


def sticky_log_evidence(log_emission_BTK: Tensor, length_B: Tensor, alpha: Tensor | float) -> Tensor:
    """`log p(trace)` in nats, shape (B,), under the sticky prior with stickiness `alpha` and uniform fresh latents.

    Args:
        log_emission_BTK: `log p(line | latent)`; what stands behind a trace's end is not read.
        length_B: lines of each trace, at least 1.
        alpha: in (0, 1); a tensor of one element to learn it.

    Raises:
        DataError: shapes that do not fit, NaN, or a trace that is impossible under every path.

    Computed in float64; the result has the emissions' dtype. Differentiable in emissions and alpha, once.
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
    """Evidence, marginals (0 behind the ends) and expected fresh draws after the first line."""
    B, T, K = log_emission_BTK.shape
    lengths = length_B.numpy()
    inside_BT = np.arange(T) < lengths[:, None]
    chain = LatentChain(
        log_emission_RK=log_emission_BTK.numpy()[inside_BT].astype(np.float64, copy=False),
        row_N=np.arange(int(lengths.sum())),
        keep_N=np.full(int(lengths.sum()), alpha),
        fresh_SK=np.full((1, K), 1.0 / K),
        fresh_row_M=np.zeros(B, dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )
    found = posterior(chain)
    marginal_BTK = np.zeros((B, T, K))
    marginal_BTK[inside_BT] = found.marginal_NK
    draws_B = np.add.reduceat(found.switch_N, chain.offsets[:-1]) - 1.0
    return torch.from_numpy(found.log_evidence_M), torch.from_numpy(marginal_BTK), torch.from_numpy(draws_B)


def _on_device(log_emission_BTK: Tensor, length_B: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `_on_cpu`; the recursions are those of `posterior`, with traces that have ended carried along unchanged."""
    B, T, K = log_emission_BTK.shape
    log_b_TBK = log_emission_BTK.double().transpose(0, 1)
    inside_TB = torch.arange(T, device=length_B.device)[:, None] < length_B
    filtered_TBK = torch.zeros(T, B, K, dtype=torch.float64, device=log_b_TBK.device)
    evidence_B = torch.zeros(B, dtype=torch.float64, device=log_b_TBK.device)
    before_BK = torch.full((B, K), 1.0 / K, dtype=torch.float64, device=log_b_TBK.device)
    for t in range(T):
        keep = alpha if t > 0 else 0.0
        joint_BK = torch.log(keep * before_BK + (1.0 - keep) / K) + log_b_TBK[t]
        gain_B = torch.logsumexp(joint_BK, 1)
        evidence_B = torch.where(inside_TB[t], evidence_B + gain_B, evidence_B)
        filtered_TBK[t] = torch.exp(joint_BK - gain_B[:, None])
        before_BK = filtered_TBK[t]
    if not bool(torch.isfinite(evidence_B).all()):
        raise DataError("a trace is impossible under every path, or its emissions hold NaN: no posterior exists")
    marginal_TBK = filtered_TBK.clone()
    draws_B = torch.zeros_like(evidence_B)
    for t in range(T - 1, 0, -1):
        predicted_BK = alpha * filtered_TBK[t - 1] + (1.0 - alpha) / K
        ratio_BK = marginal_TBK[t] / predicted_BK
        drawn_B = (1.0 - alpha) * ratio_BK.mean(1)
        smoothed_BK = filtered_TBK[t - 1] * (alpha * ratio_BK + drawn_B[:, None])
        marginal_TBK[t - 1] = torch.where(inside_TB[t][:, None], smoothed_BK, filtered_TBK[t - 1])
        draws_B += torch.where(inside_TB[t], drawn_B, 0.0)
    return evidence_B, (marginal_TBK * inside_TB[:, :, None]).transpose(0, 1), draws_B
