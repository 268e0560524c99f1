"""Estimate a posterior from sampled paths: the expected counts that an EM iteration needs, without forward-backward.

Shape letters: see CONTRIBUTING.md (G paths sampled of every trace).
"""

from __future__ import annotations

import numpy as np

from ra3gym.abstractions.inference.posterior import FloatArray, IntArray, LatentChain, Posterior
from ra3gym.errors import DataError


def switch_probabilities(chain: LatentChain, latent_GN: IntArray) -> FloatArray:
    """Return the probability that each line's latent was drawn afresh, given its path, `(G, N)`.

    It is 1 at first lines and wherever the latent changes. Where the latent stays, it may have been drawn again:

        p(drawn | same) = (1 - keep_t) fresh(z_t) / (keep_t + (1 - keep_t) fresh(z_t)).
    """
    trace_N = np.repeat(np.arange(chain.num_traces), np.diff(chain.offsets))
    fresh_GN = chain.fresh_PK[chain.fresh_row_M[trace_N], latent_GN]
    drawn_GN = (1.0 - chain.keep_N) * fresh_GN
    same_GN = latent_GN == np.roll(latent_GN, 1, axis=1)
    same_GN[:, chain.offsets[:-1]] = False
    with np.errstate(invalid="ignore"):
        return np.where(same_GN, drawn_GN / (chain.keep_N + drawn_GN), 1.0)


def counts_of_paths(chain: LatentChain, latent_GN: IntArray, elbo_GM: FloatArray) -> Posterior:
    """Average over sampled paths, as an estimate of what `posterior` computes exactly.

    Args:
        chain: the traces.
        latent_GN: G paths of every trace.
        elbo_GM: an estimate of each trace's log evidence from each path, in nats; the mean over paths is returned.

    Raises:
        DataError: paths or estimates whose shapes do not fit the chain.
    """
    G, N = latent_GN.shape
    if len(chain.row_N) != N or elbo_GM.shape != (G, chain.num_traces):
        raise DataError(
            f"paths of shape {latent_GN.shape}, estimates of shape {elbo_GM.shape}: this chain has {len(chain.row_N)} "
            f"lines in {chain.num_traces} traces"
        )
    switch_GN = switch_probabilities(chain, latent_GN)
    trace_N = np.repeat(np.arange(chain.num_traces), np.diff(chain.offsets))
    marginal_NK = np.zeros((N, chain.num_latents))
    fresh_MK = np.zeros((chain.num_traces, chain.num_latents))
    for latent_N, switch_N in zip(latent_GN, switch_GN, strict=True):
        marginal_NK[np.arange(N), latent_N] += 1.0 / G
        np.add.at(fresh_MK, (trace_N, latent_N), switch_N / G)
    return Posterior(elbo_GM.mean(axis=0), marginal_NK, switch_GN.mean(axis=0), fresh_MK)
