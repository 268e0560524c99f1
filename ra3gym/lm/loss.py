"""The next-token loss, without a tensor of logits for the whole batch.

Shape letters: see CONTRIBUTING.md (C predicted tokens, B of them at once).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym.lm.packing import IGNORE, TokenBatch

_CHUNK = 1024
"""Positions whose logits exist at the same time."""

LINEAR_HEAD = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Models whose logits are exactly `lm_head(model(...).last_hidden_state)`."""


def training_loss(model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
    """Return the summed cross-entropy of a batch in nats, with gradient when enabled, and how many tokens it predicts.

    Divide by the number of tokens for the mean; the sum lets micro-batches add up exactly.

    For Llama, Mistral and Qwen the logits and their gradient are formed in chunks, at predicted positions only, so that
    only one chunk is in memory. (The logits of 4,000 tokens over a vocabulary of 150,000 take 2.4 GB, several times.)
    Other models run their own forward pass.
    """
    device = next(model.parameters()).device
    inputs = {"input_ids": batch.ids_BT.to(device), "position_ids": batch.position_BT.to(device), "use_cache": False}
    target_C = batch.target_BT.flatten().to(device)
    predicted = (target_C != IGNORE).nonzero()[:, 0]
    target_C = target_C[predicted]
    if type(model).__name__ not in LINEAR_HEAD:
        logits_CV = model(**inputs).logits.flatten(0, 1)[predicted].float()
        return F.cross_entropy(logits_CV, target_C, reduction="sum"), len(target_C)
    hidden_CD = model.model(**inputs).last_hidden_state.flatten(0, 1).index_select(0, predicted)
    weight_VD = model.lm_head.weight
    if torch.is_grad_enabled():
        loss: Tensor = _ChunkedCrossEntropy.apply(hidden_CD, weight_VD, target_C)
        return loss, len(target_C)
    chunks = zip(hidden_CD.split(_CHUNK), target_C.split(_CHUNK), strict=True)
    losses = [F.cross_entropy(F.linear(h, weight_VD).float(), t, reduction="sum") for h, t in chunks]
    return torch.stack(losses).sum(), len(target_C)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`sum_c -log softmax(W h_c)[target_c]`; the forward pass also forms both gradients, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor) -> Tensor:
        grad_hidden_CD = torch.empty_like(hidden_CD)
        # In bfloat16 the sum over chunks would lose small terms: accumulate in float32.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        loss = torch.zeros((), device=hidden_CD.device)
        for start in range(0, len(hidden_CD), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            hidden_BD, target_B1 = hidden_CD[chunk], target_C[chunk, None]
            logp_BV = torch.log_softmax(F.linear(hidden_BD, weight_VD).float(), dim=-1)
            loss -= logp_BV.gather(1, target_B1).sum()
            grad_BV = logp_BV.exp_()
            grad_BV.scatter_add_(1, target_B1, torch.full_like(target_B1, -1, dtype=torch.float32))
            grad_BV = grad_BV.to(weight_VD.dtype)
            grad_hidden_CD[chunk] = grad_BV @ weight_VD
            grad_weight_VD += grad_BV.T @ hidden_BD
        ctx.save_for_backward(grad_hidden_CD, grad_weight_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden_CD, grad_weight_VD = ctx.saved_tensors
        (grad_loss,) = grad_outputs
        return grad_hidden_CD * grad_loss, grad_weight_VD * grad_loss, None
