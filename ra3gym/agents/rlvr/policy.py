"""The policy as one module, so that data-parallel wrappers see every forward pass: language model and value head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ra3gym.errors import ConfigError
from ra3gym.lm import group_scores, latent_ids


@dataclass(frozen=True)
class ScoreRequest:
    """Completions to score, and what of them; rows of the same prompt share its keys and values."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]
    prompt_of_row: Sequence[int]
    temperature: float
    allowed_mask_V: Tensor | None = None
    entropy: bool = False


@dataclass(frozen=True)
class PolicyScores:
    """Rows padded to the longest completion; 0 where the mask is false."""

    logp_RT: Tensor
    """float32, nats."""
    entropy_RT: Tensor | None
    """float32, nats; of the distribution that each token was drawn from."""
    value_RT: Tensor | None
    """float32; the value head's estimate ahead of each token."""
    mask_RT: Tensor
    """bool; true at the completion's tokens."""


class Policy(nn.Module):
    """A causal language model, with a value head if asked for.

    Args:
        model: trained in place.
        value_head: add one linear layer on the last hidden state, which starts at 0.
        autocast: run forward passes in this precision; the weights stay as they are.
    """

    def __init__(self, model: Any, *, value_head: bool = False, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1) if value_head else None
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self.value_head.to(model.device)
        self._autocast = autocast

    def forward(self, request: ScoreRequest) -> PolicyScores:
        """Score the request's completions, with gradient where it is enabled."""
        device = next(self.model.parameters()).device
        with nullcontext() if self._autocast is None else torch.autocast(device.type, self._autocast):
            scores = group_scores(
                self.model,
                request.prompts,
                request.completions,
                request.prompt_of_row,
                temperature=request.temperature,
                allowed_mask_V=request.allowed_mask_V,
                entropy=request.entropy,
                hidden=self.value_head is not None,
            )
        value_RT = None
        if self.value_head is not None:
            assert scores.hidden_RTD is not None
            value_RT = self.value_head(scores.hidden_RTD.float())[..., 0].masked_fill(~scores.mask_RT, 0.0)
        return PolicyScores(scores.logp_RT, scores.entropy_RT, value_RT, scores.mask_RT)


def freeze_decoder(model: Any, tokenizer: Any) -> Callable[[], None]:
    """Leave only the output rows of the latents to train: when to switch and to what, not how code is written.

    The output embedding is untied from the input embedding first. The probability of each line given that no latent
    comes, and given the latents ahead of it, then stays exactly as it is.

    Returns:
        What lets all weights learn again, the embeddings untied.

    Raises:
        ConfigError: the tokenizer has no latents.
    """
    latents = latent_ids(tokenizer)
    if not latents:
        raise ConfigError("freeze_decoder needs a model with latents, and this tokenizer has none: see add_latents")
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    model.requires_grad_(False)
    head.weight.requires_grad_(True)
    trained_V1 = torch.zeros(len(head.weight), 1, device=head.weight.device)
    trained_V1[latents] = 1.0
    hook = head.weight.register_hook(lambda gradient: gradient * trained_V1)

    def thaw() -> None:
        hook.remove()
        for weight in learnt:
            weight.requires_grad_(True)

    return thaw
