"""The temporal ELBO of RA3 (arXiv 2509.25810) and its parts, in nats: pure functions, one trace at a time.

    log p(x_1..T) >= E_q[ sum_t log p(x_t | z_t) ] - E_q[ sum_t KL(q(z_t | z_{t-1}, x) || p(z_t | z_{t-1})) ],

for any q that is a Markov chain over the trace's latents, with equality when q is the posterior. The limits: for
`alpha -> 1` a switch costs infinitely much, and RA3 is next-token prediction under one latent a trace; at `alpha -> 0`
each line has a latent of its own, and the bound is BRiTE's, line by line.

Shapes: T lines, K latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from ra3gym.errors import DataError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TemporalElbo:
    """The parts of the bound, in nats.

    reconstruction: `E_q sum_t log p(x_t | z_t)`. log_prior: `E_q sum_t log p(z_t | z_{t-1})`. entropy: q's, that is
    `-E_q sum_t log q(z_t | z_{t-1}, x)`.
    """

    reconstruction: float
    log_prior: float
    entropy: float

    @property
    def switch_kl(self) -> float:
        """`E_q sum_t KL(q(z_t | .) || p(z_t | .))`: what the latents cost."""
        return -self.log_prior - self.entropy

    @property
    def total(self) -> float:
        """The bound: reconstruction - switch KL."""
        return self.reconstruction + self.log_prior + self.entropy


def temporal_elbo(log_emission_TK: FloatArray, log_prior_TKK: FloatArray, policy_TKK: FloatArray) -> TemporalElbo:
    """The ELBO of the policy `q(z_t = k | z_{t-1} = j, x)` in `policy_TKK[t, j, k]`.

    `log_prior_TKK[t, j, k]` is `log p(z_t = k | z_{t-1} = j)`; in both, row 0 of `t = 0` stands for the first line.
    A policy that puts mass where emission or prior is impossible has the bound `-inf`.

    Raises:
        DataError: shapes that do not fit, or rows of the policy that are no distributions.
    """
    T, K = log_emission_TK.shape
    if policy_TKK.shape != (T, K, K) or log_prior_TKK.shape != (T, K, K):
        raise DataError(
            f"emissions of shape {log_emission_TK.shape} need a policy and a prior of shape {(T, K, K)}, not "
            f"{policy_TKK.shape} and {log_prior_TKK.shape}"
        )
    if not np.allclose(policy_TKK.sum(axis=2), 1.0, atol=1e-6) or (policy_TKK < 0).any():
        raise DataError("each row of the policy must be a distribution over the next latent")
    reconstruction = log_prior = entropy = 0.0
    occupancy_K = np.zeros(K)
    occupancy_K[0] = 1.0
    for t in range(T):
        reached_KK = occupancy_K[:, None] * policy_TKK[t]
        log_prior += _expected(reached_KK, log_prior_TKK[t])
        entropy += float((occupancy_K * entr(policy_TKK[t]).sum(axis=1)).sum())
        occupancy_K = reached_KK.sum(axis=0)
        reconstruction += _expected(occupancy_K, log_emission_TK[t])
    return TemporalElbo(reconstruction, log_prior, entropy)


def path_log_joint(
    log_emission_TK: FloatArray, log_prior_TKK: FloatArray, latent_T: npt.NDArray[np.int64]
) -> TemporalElbo:
    """The bound of a q that is sure of one path: `log p(x, z)`, with an entropy of 0."""
    before_T = np.concatenate([[0], latent_T[:-1]])
    lines = np.arange(len(latent_T))
    return TemporalElbo(
        reconstruction=float(log_emission_TK[lines, latent_T].sum()),
        log_prior=float(log_prior_TKK[lines, before_T, latent_T].sum()),
        entropy=0.0,
    )


def _expected(mass: FloatArray, values: FloatArray) -> float:
    """`sum mass * values`, where no mass on an impossible value counts as 0."""
    with np.errstate(invalid="ignore"):
        return float(np.where(mass > 0.0, mass * values, 0.0).sum())
