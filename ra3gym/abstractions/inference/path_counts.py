"""What sampled paths say of a posterior: the expected counts that an EM iteration needs, without forward-backward.

Shape suffixes: S paths of every trace, N lines in all, M traces, K latents.
"""

from __future__ import annotations

import numpy as np

from ra3gym.abstractions.inference.posterior import FloatArray, IntArray, LatentChain, Posterior
from ra3gym.errors import DataError


def switch_probabilities(chain: LatentChain, latent_SN: IntArray) -> FloatArray:
    """The probability that a line's latent was drawn afresh, given the path it lies on, shape (S, N).

    It is 1 in first lines and wherever the latent changes. Where it stays, the same latent may have been drawn again:

        p(drawn | same) = (1 - keep_t) fresh(z_t) / (keep_t + (1 - keep_t) fresh(z_t)).
    """
    trace_N = np.repeat(np.arange(chain.num_traces), np.diff(chain.offsets))
    fresh_SN = chain.fresh_SK[chain.fresh_row_M[trace_N], latent_SN]
    drawn_SN = (1.0 - chain.keep_N) * fresh_SN
    same_SN = latent_SN == np.roll(latent_SN, 1, axis=1)
    same_SN[:, chain.offsets[:-1]] = False
    with np.errstate(invalid="ignore"):
        return np.where(same_SN, drawn_SN / (chain.keep_N + drawn_SN), 1.0)


def counts_of_paths(chain: LatentChain, latent_SN: IntArray, elbo_SM: FloatArray) -> Posterior:
    """Averages over sampled paths in the place of forward-backward's expectations.

    Args:
        chain: what the paths belong to.
        latent_SN: S paths of every trace.
        elbo_SM: an estimate of each trace's evidence from each path, in nats; their mean stands for the log evidence.

    Raises:
        DataError: paths of other traces than the chain's.
    """
    S, N = latent_SN.shape
    if len(chain.row_N) != N or elbo_SM.shape != (S, chain.num_traces):
        raise DataError(
            f"paths of shape {latent_SN.shape} and bounds of shape {elbo_SM.shape}: this chain has {len(chain.row_N)} "
            f"lines in {chain.num_traces} traces"
        )
    switch_SN = switch_probabilities(chain, latent_SN)
    trace_N = np.repeat(np.arange(chain.num_traces), np.diff(chain.offsets))
    marginal_NK = np.zeros((N, chain.num_latents))
    fresh_MK = np.zeros((chain.num_traces, chain.num_latents))
    for latent_N, switch_N in zip(latent_SN, switch_SN, strict=True):
        marginal_NK[np.arange(N), latent_N] += 1.0 / S
        np.add.at(fresh_MK, (trace_N, latent_N), switch_N / S)
    return Posterior(elbo_SM.mean(axis=0), marginal_NK, switch_SN.mean(axis=0), fresh_MK)
