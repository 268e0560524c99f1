"""The sticky prior over latents, and the fixed switch penalty that replaces it in practice.

The prior is `p(z_t | z_{t-1}) = alpha [z_t = z_{t-1}] + (1 - alpha) / K` (arXiv 2509.25810), so

    log p(same) = log(alpha + (1 - alpha) / K),      log p(another) = log((1 - alpha) / K).

Every line of a path pays `log p(same)`, and each switch to another latent pays in addition

    c = log p(same) - log p(another) = log(1 + alpha K / (1 - alpha))      nats.

So RL with a fixed cost c per switch ranks paths as the sticky prior does: the two differ by a constant per line.
Conversely, `alpha = (e^c - 1) / (e^c - 1 + K)`. The paper's c = 0.05 is a weak prior in nats: with K = 48 latents it
is alpha = 0.0011, while alpha = 1 / (K + 1) already makes c = log 2 = 0.69. (We do not know how the paper
normalizes the log-likelihood.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ra3gym.errors import ConfigError


@dataclass(frozen=True)
class StickyPrior:
    """Keep the latent with probability `alpha`, else draw one of `num_latents` uniformly.

    `alpha -> 1` never switches (next-token prediction with one latent per trace). `alpha -> 0` draws a latent for each
    line independently (BRiTE, horizon 1).

    Raises:
        ConfigError: alpha outside (0, 1), or fewer than 2 latents.
    """

    alpha: float
    num_latents: int

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise ConfigError(f"alpha={self.alpha}: the probability of keeping a latent must lie in (0, 1)")
        if self.num_latents < 2:
            raise ConfigError(f"num_latents={self.num_latents}: a codebook needs at least 2 latents, give 2 or more")

    @property
    def switch_penalty(self) -> float:
        """The cost c of a switch to another latent, in nats, which ranks paths as this prior does."""
        return math.log1p(self.alpha * self.num_latents / (1.0 - self.alpha))

    @classmethod
    def from_switch_penalty(cls, penalty: float, num_latents: int) -> StickyPrior:
        """Make the prior that ranks paths as a fixed cost of `penalty > 0` nats per switch does."""
        if not penalty > 0.0 or not math.isfinite(penalty):
            raise ConfigError(f"penalty={penalty}: the cost of a switch must be positive and finite, in nats")
        return cls(math.expm1(penalty) / (math.expm1(penalty) + num_latents), num_latents)
