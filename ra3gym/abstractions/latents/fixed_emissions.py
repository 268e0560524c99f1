"""Learning the prior over latents where emissions are given, as a language model gives them.

The gate `p(keep | previous line)` and the fresh latents `p(z | prompt)` of `codebook` are fitted by EM to a table of
emissions that stays as it is: the evidence rises in every iteration.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ra3gym.abstractions.inference.posterior import FloatArray, LatentChain, posterior
from ra3gym.abstractions.latents.codebook import Infer, gate, trace_priors, word_distributions
from ra3gym.abstractions.latents.corpus import LineCorpus
from ra3gym.errors import ConfigError


@dataclass(frozen=True)
class FittedPrior:
    """A prior fitted to emissions.

    chain: the emissions under it. word_WK: p(latent | word). evidence: nats per line, of the parameters that each
    iteration started from, or the bound that an approximate E-step gave.
    """

    chain: LatentChain
    word_WK: FloatArray
    evidence: tuple[float, ...]


def fit_prior(
    corpus: LineCorpus,
    log_emission_NK: FloatArray,
    infer: Infer = posterior,
    *,
    iterations: int = 5,
    gate_prior: float = 0.5,
) -> FittedPrior:
    """EM over gate and fresh latents; `DataError` where a trace is impossible under every path.

    Args:
        corpus: the traces whose lines the rows of `log_emission_NK` are.
        log_emission_NK: `log p(line | latent)` in nats.
        infer: the E-step; exact by default.
        iterations: 1 or more; few suffice, since emissions do not move.
        gate_prior: pseudo-counts of keeping and of switching for each previous line.
    """
    if iterations < 1 or gate_prior <= 0:
        raise ConfigError(f"iterations={iterations}, gate_prior={gate_prior}: give at least 1, and a positive number")
    N, K = log_emission_NK.shape
    weight_N = np.ones(N)
    keep_U1 = np.full(len(corpus.templates) + 1, 0.5)
    word_WK = np.full((len(corpus.words), K), 1.0 / K)
    evidence: list[float] = []
    chain = _chain(corpus, log_emission_NK, keep_U1, word_WK)
    for _ in range(iterations):
        found = infer(chain)
        evidence.append(float(found.log_evidence_M.sum() / N))
        keep_U1 = gate(corpus, 1.0 - found.switch_N, weight_N, gate_prior)
        word_WK = word_distributions(corpus, word_WK, chain.fresh_PK, found.fresh_MK)
        chain = _chain(corpus, log_emission_NK, keep_U1, word_WK)
    return FittedPrior(chain, word_WK, tuple(evidence))


def _chain(corpus: LineCorpus, log_emission_NK: FloatArray, keep_U1: FloatArray, word_WK: FloatArray) -> LatentChain:
    return LatentChain(
        log_emission_UK=log_emission_NK,
        row_N=np.arange(len(log_emission_NK)),
        keep_N=keep_U1[corpus.previous_N],
        fresh_PK=trace_priors(corpus, word_WK),
        fresh_row_M=np.arange(corpus.num_traces),
        offsets=corpus.offsets,
    )
