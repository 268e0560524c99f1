"""Log-probability and entropy of tokens from the states that predict them, without the logits of the whole batch.

Shape letters: see CONTRIBUTING.md (C tokens, B of them at once: a block).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ra3gym.lm.fast.llama_layers import product_dtype

_BLOCK_ELEMENTS = 2**23
"""Logits that exist at the same time in one pass: 32 MiB in float32."""
_KEEP_ELEMENTS = 2**25
"""Log-probabilities kept from the forward to the backward pass: 128 MiB in float32. Others are computed again."""


def linear_scores(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_C: Tensor,
    *,
    temperature: float = 1.0,
    banned_V: Tensor | None = None,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return `log p(target_c)` and the entropy of `p = softmax((W h_c + b) / temperature)`: nats, `(C,)`, float32.

    Both are differentiable in the states, the weight and the bias. Products are taken in the type of the weight, or of
    autocast where it is on. All else is in float32, as is the sum of the weight's gradient over blocks.

    Args:
        hidden_CD: the states.
        weight_VD: the output layer's weight.
        bias_V: its bias.
        target_C: int64, the tokens.
        temperature: divides the logits.
        banned_V: bool, tokens of probability 0; the others are renormalized.
        entropy: whether to return the entropy (else `None`).
    """
    dtype = product_dtype(weight_VD)
    with torch.autocast(hidden_CD.device.type, enabled=False):
        logp_C, entropy_C = _LinearScores.apply(
            hidden_CD, weight_VD, bias_V, target_C, temperature, banned_V, entropy, dtype
        )
    return logp_C, entropy_C if entropy else None


class _LinearScores(torch.autograd.Function):
    """With `z` the logits over the temperature, `g` and `e` the gradients of log-probability and entropy `H`:

    `dL/dz_j = g [j = target] - p_j (g + e (log p_j + H))`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_CD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_C: Tensor,
        temperature: float,
        banned_V: Tensor | None,
        entropy: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature, ctx.dtype, ctx.entropy = temperature, dtype, entropy
        ctx.kept = []
        keep = _KEEP_ELEMENTS if any(ctx.needs_input_grad) else 0
        parts: list[Tensor] = []
        entropies: list[Tensor] = []
        cast_weight_VD = weight_VD.to(dtype)
        for block in _blocks(hidden_CD, weight_VD):
            logp_BV = _log_softmax(hidden_CD[block].to(dtype), cast_weight_VD, bias_V, temperature, banned_V)
            parts.append(logp_BV.gather(1, target_C[block, None])[:, 0])
            if entropy:
                entropies.append(_entropy(logp_BV))
            if logp_BV.numel() <= keep:
                keep -= logp_BV.numel()
                ctx.kept.append(logp_BV)
        logp_C = torch.cat(parts) if parts else hidden_CD.new_zeros(0, dtype=torch.float32)
        entropy_C = torch.cat(entropies) if entropies else torch.zeros_like(logp_C)
        ctx.save_for_backward(hidden_CD, weight_VD, bias_V, target_C, banned_V, entropy_C)
        return logp_C, entropy_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_logp_C, grad_entropy_C = gradients
        hidden_CD, weight_VD, bias_V, target_C, banned_V, entropy_C = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_hidden_CD = torch.empty_like(hidden_CD) if for_hidden else None
        # In float32, because a sum over blocks in bfloat16 would lose small terms.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if for_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if for_bias else None
        cast_weight_VD = weight_VD.to(ctx.dtype)
        for number, block in enumerate(_blocks(hidden_CD, weight_VD)):
            hidden_BD = hidden_CD[block].to(ctx.dtype)
            if number < len(ctx.kept):
                logp_BV, ctx.kept[number] = ctx.kept[number], None
            else:
                logp_BV = _log_softmax(hidden_BD, cast_weight_VD, bias_V, ctx.temperature, banned_V)
            grad_B1 = grad_logp_C[block, None]
            if ctx.entropy:
                factor_BV = logp_BV.masked_fill(logp_BV == -torch.inf, 0.0).add_(entropy_C[block, None])
                factor_BV = factor_BV.mul_(grad_entropy_C[block, None]).add_(grad_B1)
                grad_BV = logp_BV.exp_().mul_(factor_BV).neg_()
            else:
                grad_BV = logp_BV.exp_().mul_(-grad_B1)
            grad_BV.scatter_add_(1, target_C[block, None], grad_B1)
            if ctx.temperature != 1.0:
                grad_BV.div_(ctx.temperature)
            if grad_bias_V is not None:
                grad_bias_V += grad_BV.sum(0)
            grad_BV = grad_BV.to(ctx.dtype)
            if grad_hidden_CD is not None:
                grad_hidden_CD[block] = grad_BV @ cast_weight_VD
            if grad_weight_VD is not None and ctx.dtype == torch.float32:
                grad_weight_VD.addmm_(grad_BV.T, hidden_BD)
            elif grad_weight_VD is not None:
                grad_weight_VD += grad_BV.T @ hidden_BD
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        if grad_bias_V is not None:
            grad_bias_V = grad_bias_V.to(bias_V.dtype)
        return grad_hidden_CD, grad_weight_VD, grad_bias_V, None, None, None, None, None


def _blocks(hidden_CD: Tensor, weight_VD: Tensor) -> list[slice]:
    size = max(16, _BLOCK_ELEMENTS // len(weight_VD))
    return [slice(start, start + size) for start in range(0, len(hidden_CD), size)]


def _log_softmax(
    hidden_BD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float, banned_V: Tensor | None
) -> Tensor:
    bias_V = None if bias_V is None else bias_V.to(weight_VD.dtype)
    return log_softmax(F.linear(hidden_BD, weight_VD, bias_V), temperature, banned_V)


def log_softmax(logits: Tensor, temperature: float, banned_V: Tensor | None) -> Tensor:
    """Return log-probabilities in float32 at this temperature; minus infinity at banned tokens."""
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    if banned_V is not None:
        logits = logits.masked_fill(banned_V, -torch.inf)
    return torch.log_softmax(logits, dim=-1)


def _entropy(logp_BV: Tensor) -> Tensor:
    """Return `-sum p log p`, where 0 log 0 is 0."""
    entropy_B: Tensor = torch.special.entr(logp_BV.exp()).sum(-1)
    return entropy_B
