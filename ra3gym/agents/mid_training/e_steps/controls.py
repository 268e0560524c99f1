"""Controls as E-steps: the segments of another E-step, with latents that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.abstractions.latents.controls import CONTROLS
from ra3gym.agents.mid_training.e_steps.protocol import EStep, with_codebook
from ra3gym.errors import UnknownNameError
from ra3gym.tasks import ExpertTrace


@dataclass(frozen=True)
class ControlEStep:
    """A control in the segments that another E-step infers.

    Attributes:
        control: "pause", "random" or "shuffled"; see `ra3gym.abstractions.latents.controls`.
        segments: the E-step whose segments are kept.
    """

    control: str
    segments: EStep

    def __post_init__(self) -> None:
        if self.control not in CONTROLS:
            raise UnknownNameError("control", self.control, CONTROLS)

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; metrics are those of `segments`."""
        return CONTROLS[self.control](self.segments.infer(traces, rng), rng)

    def with_codebook(self, change: Callable[[CodebookConfig], CodebookConfig]) -> Self:
        """Return the same control in segments of a changed codebook."""
        return replace(self, segments=with_codebook(self.segments, change))
