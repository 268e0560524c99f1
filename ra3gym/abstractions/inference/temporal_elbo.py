"""The temporal ELBO of RA3 (arXiv 2509.25810) and its parts, in nats, for any policy over the latents of a trace.

Call it to score an E-step of your own, or a policy that was not trained here, against the exact log evidence. (The
E-steps of this package measure their gap from sampled paths.)

    log p(x_1..T) >= E_q[ sum_t log p(x_t | z_t) ] - E_q[ sum_t KL(q(z_t | z_{t-1}, x) || p(z_t | z_{t-1})) ],

for any q that is a Markov chain over the trace's latents, with equality when q is the posterior. Two limits: for
`alpha -> 1` the cost of a switch is infinite, and RA3 is next-token prediction under one latent per trace. At
`alpha -> 0` each line has its own latent, and the bound is BRiTE's, line by line.

Shape letters: see CONTRIBUTING.md.
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

    Attributes:
        reconstruction: `E_q sum_t log p(x_t | z_t)`.
        log_prior: `E_q sum_t log p(z_t | z_{t-1})`.
        entropy: that of q, `-E_q sum_t log q(z_t | z_{t-1}, x)`.
    """

    reconstruction: float
    log_prior: float
    entropy: float

    @property
    def switch_kl(self) -> float:
        """`E_q sum_t KL(q(z_t | .) || p(z_t | .))`: the cost of the latents."""
        return -self.log_prior - self.entropy

    @property
    def total(self) -> float:
        """The bound: reconstruction - switch KL."""
        return self.reconstruction + self.log_prior + self.entropy


def temporal_elbo(log_emission_TK: FloatArray, log_prior_TKK: FloatArray, policy_TKK: FloatArray) -> TemporalElbo:
    """Compute the ELBO of a policy.

    A policy that puts mass where emission or prior is impossible has the bound `-inf`. A policy that is sure of one
    path has an entropy of 0, and its bound is the log joint probability of path and trace.

    Args:
        log_emission_TK: `log p(x_t | z_t = k)` in nats.
        log_prior_TKK: `log p(z_t = k | z_{t-1} = j)` at `[t, j, k]`; the first line, without a previous latent, is
            `[0, 0]`.
        policy_TKK: `q(z_t = k | z_{t-1} = j, x)` at `[t, j, k]`, likewise.

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


def _expected(mass: FloatArray, values: FloatArray) -> float:
    """Return `sum mass * values`, where 0 mass times an infinite value is 0."""
    with np.errstate(invalid="ignore"):
        return float(np.where(mass > 0.0, mass * values, 0.0).sum())
