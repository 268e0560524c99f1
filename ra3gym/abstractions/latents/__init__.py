"""Latents over lines of code: annotations of traces, the codebook that explains them, and their diagnosis.

`Annotations` is what an E-step hands to an M-step: a `LatentPath` for each trace, and what the latents are called.
"""

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.path import LatentPath

__all__ = ["Annotations", "LatentPath"]
