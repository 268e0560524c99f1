"""The sticky prior over latents, and the fixed switch penalty that stands for it in practice.

The prior is `p(z_t | z_{t-1}) = alpha [z_t = z_{t-1}] + (1 - alpha) / K` (arXiv 2509.25810), so

    log p(same) = log(alpha + (1 - alpha) / K),      log p(another) = log((1 - alpha) / K).

A chosen path is charged `log p(same)` on every line, whatever it does, and at each switch to another latent also

    c = log p(same) - log p(another) = log(1 + alpha K / (1 - alpha))      nats.

So RL with a fixed cost c per switch ranks paths as the sticky prior does; it is the same up to a constant per line.
The other way round, `alpha = (e^c - 1) / (e^c - 1 + K)`. The paper's c = 0.05 is a weak prior in nats: with K = 48
latents it is alpha = 0.0011, since c would be log 2 = 0.69 at alpha = 1 / (K + 1) already. (How the paper normalises
the log-likelihood beside it is not known to us.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ra3gym.errors import ConfigError


@dataclass(frozen=True)
class StickyPrior:
    """Keep the latent with probability `alpha`, else draw one of `num_latents` uniformly.

    `alpha -> 1` never switches (next-token prediction with a latent per trace), `alpha -> 0` draws a latent for each
    line on its own (BRiTE, horizon 1). Raises `ConfigError` for alpha outside (0, 1) or fewer than 2 latents.
    """

    alpha: float
    num_latents: int

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise ConfigError(f"alpha={self.alpha}: the probability of keeping a latent must lie in (0, 1)")
        if self.num_latents < 2:
            raise ConfigError(f"num_latents={self.num_latents}: a codebook needs at least 2 latents")

    @property
    def log_same(self) -> float:
        """`log p(z_t = z_{t-1})` in nats."""
        return math.log(self.alpha + (1.0 - self.alpha) / self.num_latents)

    @property
    def log_another(self) -> float:
        """`log p(z_t = k)` for each k that is not `z_{t-1}`, in nats."""
        return math.log((1.0 - self.alpha) / self.num_latents)

    @property
    def switch_penalty(self) -> float:
        """The cost c of a switch to another latent, in nats, that ranks paths as this prior does."""
        return math.log1p(self.alpha * self.num_latents / (1.0 - self.alpha))

    @classmethod
    def from_switch_penalty(cls, penalty: float, num_latents: int) -> StickyPrior:
        """The prior that a fixed cost of `penalty > 0` nats per switch stands for."""
        if not penalty > 0.0 or not math.isfinite(penalty):
            raise ConfigError(f"penalty={penalty}: the cost of a switch must be positive and finite, in nats")
        return cls(math.expm1(penalty) / (math.expm1(penalty) + num_latents), num_latents)
