"""The latents of one trace: one for each line, and where segments begin."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentPath:
    """One latent per line of a trace, and whether the line starts a segment (always true for the first)."""

    latents: tuple[int, ...]
    switches: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.switches) or not self.switches or not self.switches[0]:
            raise ValueError("a path has as many switches as latents, at least one, and starts with a switch")

    @property
    def segment_latents(self) -> tuple[int, ...]:
        """The latent of each segment, in order."""
        return tuple(z for z, switch in zip(self.latents, self.switches, strict=True) if switch)
