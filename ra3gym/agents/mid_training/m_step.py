"""The M-step: next-token prediction on annotated traces, for a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch

from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.lm import batches, training_loss
from ra3gym.plugins import Registry

Optimizer = Literal["muon", "adamw"]


@dataclass(frozen=True)
class MStepConfig:
    """How a model is trained on documents.

    Attributes:
        tokens: budget of predicted tokens: all but a document's first. Latents, pauses and inferred prompts count.
        optimizer: "muon" trains weight matrices with Muon (orthogonalized momentum) and the rest with AdamW; a small
            model from scratch reaches a lower loss per token with it. "adamw" is the usual choice for a pre-trained
            checkpoint.
        learning_rate: AdamW's peak; warms up over the first 5% of the budget and decays linearly to a tenth. 4e-3 to
            1e-2 for the embedded model, 1e-5 to 5e-5 for a pre-trained checkpoint.
        matrix_learning_rate: Muon's peak, on the same schedule; 5e-3 to 2e-2.
        tokens_per_batch: 512 to 4,096 for the embedded model; per token, small batches learn much faster.
        weight_decay: decoupled, 0 to 0.1.
        max_grad_norm: gradients are clipped to this norm.
    """

    tokens: int = 1_200_000
    optimizer: Optimizer = "muon"
    learning_rate: float = 1e-2
    matrix_learning_rate: float = 1e-2
    tokens_per_batch: int = 512
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(Optimizer):
            raise UnknownNameError("optimizer", self.optimizer, get_args(Optimizer))
        if self.tokens_per_batch < 1 or self.learning_rate <= 0 or self.matrix_learning_rate <= 0:
            raise ConfigError(
                f"tokens_per_batch={self.tokens_per_batch}, learning_rate={self.learning_rate}, "
                f"matrix_learning_rate={self.matrix_learning_rate}: all must be positive"
            )
        if self.tokens < self.tokens_per_batch:
            raise ConfigError(
                f"the budget tokens={self.tokens} is smaller than one batch (tokens_per_batch={self.tokens_per_batch}):"
                " raise tokens or lower tokens_per_batch"
            )


@dataclass(frozen=True)
class MStepProgress:
    """The progress of training.

    Attributes:
        tokens: predicted so far.
        loss: mean over the last batch, in nats per token.
    """

    tokens: int
    loss: float


def distill(
    model: Any,
    documents: Sequence[list[int]],
    config: MStepConfig,
    *,
    seed: int,
    on_progress: Callable[[MStepProgress], bool | None] = lambda _: None,
) -> int:
    """Train `model` in place on shuffled passes over `documents` until the budget is spent.

    Args:
        model: a causal language model.
        documents: token ids of each document.
        config: budget and optimizer.
        seed: decides the order of the documents; the same seed gives the same parameters.
        on_progress: called after each batch; training ends early when it returns true.

    Returns:
        The tokens predicted; the last batch may exceed the budget by less than its own tokens.

    Raises:
        DataError: no documents.
    """
    if not documents:
        raise DataError("there are no documents to train on")
    generator = torch.Generator().manual_seed(seed)
    optimizers = _optimizers(model, config)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    model.train()
    seen = 0
    while True:
        for batch in batches(documents, config.tokens_per_batch, generator):
            share = seen / config.tokens
            scale = min(1.0, (share + 0.002) / 0.05) * (1.0 - 0.9 * share)
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * scale
            loss_sum, num_tokens = training_loss(model, batch)
            loss = loss_sum / num_tokens
            model.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
            seen += num_tokens
            stop = on_progress(MStepProgress(tokens=seen, loss=loss.item()))
            if stop or seen >= config.tokens:
                model.eval()
                return seen


class MStep(Protocol):
    """Trains a model in place on documents (token ids that include latents); returns the number of tokens seen."""

    def __call__(
        self,
        model: Any,
        documents: Sequence[list[int]],
        config: MStepConfig,
        *,
        seed: int,
        on_progress: Callable[[MStepProgress], bool | None] = ...,
    ) -> int:
        """See `distill`."""
        ...


M_STEPS: Registry[MStep] = Registry("M-step", "ra3gym.agents.mid_training.register_m_step", {"distill": distill})


def register_m_step(name: str, m_step: MStep) -> None:
    """Make `m_step` available as `make_m_step(name)`; a name that exists is replaced."""
    M_STEPS.register(name, m_step)


def make_m_step(name: str) -> MStep:
    """Return the M-step registered under `name`; `UnknownNameError` lists the known ones."""
    return M_STEPS[name]


def _optimizers(model: Any, config: MStepConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW for all parameters; or Muon for the matrices inside the layers, AdamW for the rest."""
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    if config.optimizer == "adamw":
        matrices = []
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    adamw = torch.optim.AdamW(
        others, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95), fused=True
    )
    if not matrices:
        return [adamw]
    return [torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=config.weight_decay), adamw]
