"""Latents over lines of code: annotations of traces, the codebook that explains them, and their diagnosis.

`Annotations` is what an E-step returns to an M-step: a `LatentPath` for each trace, and names for the latents.
"""

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.path import LatentPath

__all__ = ["Annotations", "LatentPath"]
