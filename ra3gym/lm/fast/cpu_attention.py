"""Attention for training in bfloat16 on a CPU, where PyTorch's fused kernel is slow, above all in the backward pass.

Plain products and a softmax take about half its time. They keep the weights of all pairs of positions in memory, so the
fused kernel is used where there are many pairs.

Shape letters: see CONTRIBUTING.md (T positions that ask, X positions that are asked; G = H / J).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ra3gym.lm.fast.llama_layers import product_dtype

_NAME = "ra3gym_cpu"
_MOST_PAIRS = 2**25
"""The most weights of a layer in memory at the same time: 64 MiB, and four times that for a moment."""


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Have the forward passes of `model` inside this context use plain attention where it is faster.

    Do not enter it with gradient checkpointing, which would compute the pass again outside of it.
    """
    config = model.config
    before = config._attn_implementation
    if before != "sdpa" or not _in_bfloat16_on_cpu(model):
        yield
        return
    _register()
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _in_bfloat16_on_cpu(model: Any) -> bool:
    weight = next(model.parameters())
    return bool(weight.device.type == "cpu" and product_dtype(weight) == torch.bfloat16)


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, eager_mask)


def _attention(
    module: Any,
    query_BHTI: Tensor,
    key_BJXI: Tensor,
    value_BJXI: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; the first result is `(B, T, H, I)`."""
    rows, heads, asking, _ = query_BHTI.shape
    if dropout or attention_mask is None or rows * heads * asking * key_BJXI.shape[2] > _MOST_PAIRS:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        mixed: Tensor = sdpa_attention_forward(
            module, query_BHTI, key_BJXI, value_BJXI, attention_mask, scaling=scaling, dropout=dropout, **others
        )[0]
        return mixed, None
    inputs = (x.to(value_BJXI.dtype) for x in (query_BHTI, key_BJXI, value_BJXI))
    with torch.autocast("cpu", enabled=False):
        mixed_BHTI: Tensor = _Attention.apply(*inputs, attention_mask, scaling)
    return mixed_BHTI.transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    """`softmax(scaling Q K^T + bias) V`, the softmax and its gradient in float32.

    With `W` the weights and `O` the result: `dS = W * (dO V^T - rowsum(dO * O))`.
    """

    @staticmethod
    def forward(
        ctx: Any, query_BHTI: Tensor, key_BJXI: Tensor, value_BJXI: Tensor, bias_B1TX: Tensor, scaling: float
    ) -> Tensor:
        shape, length = query_BHTI.shape, key_BJXI.shape[2]
        query, key, value = _by_key_head(query_BHTI, key_BJXI, value_BJXI)
        scores = torch.bmm(query, key.transpose(1, 2)).float().mul_(scaling)
        scores.view(*shape[:3], length).add_(bias_B1TX)
        weight = torch.softmax(scores, dim=-1).to(query.dtype)
        mixed = torch.bmm(weight, value)
        ctx.save_for_backward(query, key, value, weight, mixed)
        ctx.scaling, ctx.shapes = scaling, (shape, key_BJXI.shape)
        return mixed.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTI: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weight, mixed = ctx.saved_tensors
        asking, asked = ctx.shapes
        grad = grad_BHTI.reshape(mixed.shape)
        grad_value = torch.bmm(weight.transpose(1, 2), grad)
        grad_scores = torch.bmm(grad, value.transpose(1, 2)).float()
        grad_scores.sub_((grad.float() * mixed.float()).sum(-1, keepdim=True)).mul_(weight).mul_(ctx.scaling)
        grad_scores = grad_scores.to(query.dtype)
        grad_query = torch.bmm(grad_scores, key)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query)
        return grad_query.view(asking), grad_key.view(asked), grad_value.view(asked), None, None


def _by_key_head(query_BHTI: Tensor, key_BJXI: Tensor, value_BJXI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reshape to `(B J, G T, I)` and twice `(B J, X, I)`: one product for all query heads of a key-value head."""
    products = key_BJXI.shape[0] * key_BJXI.shape[1]
    size = query_BHTI.shape[3]
    key, value = (x.reshape(products, -1, size) for x in (key_BJXI, value_BJXI))
    return query_BHTI.reshape(products, -1, size), key, value
