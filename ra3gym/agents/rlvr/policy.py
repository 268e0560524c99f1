"""The policy: language model and value head in one module, so that data-parallel wrappers see every forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ra3gym.errors import ConfigError
from ra3gym.lm import group_scores, latent_ids
from ra3gym.lm.rendering import FirstChoice


@dataclass(frozen=True)
class ScoreRequest:
    """Completions to score; rows of the same prompt share its keys and values.

    Attributes:
        prompts: token ids.
        completions: token ids of R rows.
        prompt_of_row: index into `prompts` for each row.
        temperature: of the distribution that the tokens are scored under.
        allowed_mask_V: bool, the tokens that this distribution is over; all when `None`.
        entropy: also return the distribution's entropy at each token.
        first_choices: for each row, its first decision; none where no prompt forces text.
    """

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]
    prompt_of_row: Sequence[int]
    temperature: float
    allowed_mask_V: Tensor | None = None
    entropy: bool = False
    first_choices: Sequence[FirstChoice] = ()


@dataclass(frozen=True)
class PolicyScores:
    """Scores of rows that are padded to the longest completion; 0 where the mask is false.

    Attributes:
        logp_RT: float32, nats.
        entropy_RT: float32, nats; of the distribution of each token.
        value_RT: float32; the value head's estimate before each token.
        mask_RT: bool; true at the completion's tokens.
    """

    logp_RT: Tensor
    entropy_RT: Tensor | None
    value_RT: Tensor | None
    mask_RT: Tensor


class Policy(nn.Module):
    """A causal language model, with or without a value head.

    Args:
        model: trained in place.
        value_head: add one linear layer on the last hidden state, which starts at 0.
        autocast: precision of forward passes; that of the weights when `None`.
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
        """Score the request's completions; with gradient when it is enabled."""
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
                first_choices=request.first_choices,
            )
        value_RT = None
        if self.value_head is not None:
            assert scores.hidden_RTD is not None
            value_RT = self.value_head(scores.hidden_RTD.float())[..., 0].masked_fill(~scores.mask_RT, 0.0)
        return PolicyScores(scores.logp_RT, scores.entropy_RT, value_RT, scores.mask_RT)


def freeze_decoder(model: Any, tokenizer: Any) -> Callable[[], None]:
    """Freeze everything but the output rows of the latents, which decide when to switch and to which latent.

    The output embedding is untied from the input embedding first. So the probabilities of code tokens, given the
    latents before them and given that the next token is no latent, stay exactly the same.

    Returns:
        A function that lets all weights learn again; the embeddings stay untied.

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
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    model.requires_grad_(False)
    head.weight.requires_grad_(True)
    trained_V1 = torch.zeros(len(head.weight), 1, device=head.weight.device)
    trained_V1[latents] = 1.0
    hook = head.weight.register_hook(lambda gradient: gradient * trained_V1)

    def thaw() -> None:
        hook.remove()
        for weight in learned:
            weight.requires_grad_(True)

    return thaw
