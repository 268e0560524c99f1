"""Log-probabilities of given tokens, with gradient when gradients are enabled.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ra3gym.errors import ConfigError


def token_logprobs(
    model: Any,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return `log p(token t | tokens before t)`, in nats.

    Args:
        model: any causal language model of transformers.
        input_ids_BT: token ids, padded on either side.
        attention_mask_BT: 1 (or true) at real tokens; all are real when `None`.
        temperature: divides the logits, as in `generate`.

    Returns:
        `logp_BT`, float32; 0 at the first token of each sequence, which nothing predicts, and at padding.
    """
    if attention_mask_BT is None:
        attention_mask_BT = torch.ones_like(input_ids_BT)
    mask_BT = attention_mask_BT.long()
    logits = model(
        input_ids=input_ids_BT,
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(1) - 1).clamp_(min=0),
        use_cache=False,
    ).logits[:, :-1]
    logp = _logp_of(logits, input_ids_BT[:, 1:], temperature)
    predicted = (mask_BT[:, :-1] * mask_BT[:, 1:]).bool()
    return F.pad(logp.masked_fill(~predicted, 0.0), (1, 0))


def completion_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Score completions given their prompts; the output layer runs on completion positions only.

    Args:
        model: any causal language model of transformers.
        prompts: B prompts, at least one token each.
        completions: B completions, possibly empty, end token included where it should count.
        temperature: divides the logits, as in `generate`.

    Returns:
        `logp_BT` (float32, nats) and `mask_BT` (bool, true at the tokens of the completion), where T is the length of
        the longest completion and column t belongs to its token t; `logp_BT` is 0 where the mask is false.

    Raises:
        ConfigError: an empty prompt, or not one completion per prompt.
    """
    if len(prompts) != len(completions) or not prompts or not all(len(prompt) for prompt in prompts):
        raise ConfigError(f"{len(prompts)} prompts and {len(completions)} completions: give one each, no prompt empty")
    device = next(model.parameters()).device
    prompt_length, length = max(map(len, prompts)), max(map(len, completions))
    # All completions begin at the same column, so that the columns to predict are the last ones.
    ids = torch.zeros(len(prompts), prompt_length + length, dtype=torch.int64)
    attention = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        span = slice(prompt_length - len(prompt), prompt_length + len(completion))
        ids[row, span] = torch.tensor([*prompt, *completion])
        attention[row, span] = 1
    ids, attention = ids.to(device), attention.to(device)
    logits = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=(attention.cumsum(1) - 1).clamp_(min=0),
        use_cache=False,
        logits_to_keep=length + 1,
    ).logits[:, :-1]
    mask_BT = attention[:, prompt_length:].bool()
    logp_BT = _logp_of(logits, ids[:, prompt_length:], temperature)
    return logp_BT.masked_fill(~mask_BT, 0.0), mask_BT


def _logp_of(logits_BTV: Tensor, ids_BT: Tensor, temperature: float) -> Tensor:
    logits = logits_BTV.float()
    if temperature != 1.0:
        logits = logits / temperature
    return -F.cross_entropy(logits.flatten(0, 1), ids_BT.flatten(), reduction="none").view(ids_BT.shape)
