"""What an E-step is: the protocols that the loop and the studies rely on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.lm import LoadedModel
from ra3gym.tasks import ExpertTrace


class EStep(Protocol):
    """Infers latents over expert traces.

    An E-step that reads or trains the model also has `for_model(loaded) -> EStep`: the loop calls it before each
    iteration's `infer`, with the model as the previous M-step left it.
    """

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """Latents for every trace; the same `rng` state gives the same result."""
        ...


@runtime_checkable
class NeedsModel(Protocol):
    """An E-step that reads or trains the model that is being mid-trained."""

    def for_model(self, loaded: LoadedModel) -> EStep:
        """Return the E-step for this model, which it may train in place."""
        ...


@runtime_checkable
class HasCodebook(Protocol):
    """An E-step with latents whose number, at least, can be configured."""

    def with_codebook(self, change: Callable[[CodebookConfig], CodebookConfig]) -> EStep:
        """Return the same E-step with its codebook changed."""
        ...


def with_codebook(e_step: EStep, change: Callable[[CodebookConfig], CodebookConfig]) -> EStep:
    """Return the same E-step with its codebook changed; one without a codebook is returned as it is."""
    return e_step.with_codebook(change) if isinstance(e_step, HasCodebook) else e_step
