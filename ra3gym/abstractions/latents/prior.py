"""The prior over latents that a codebook learns: a gate for each previous line, fresh latents from the prompt's words.

- The *gate* `p(keep | x_{t-1})` decides whether line t stays under its latent.
- A *fresh* latent is drawn from `p(z | words)`, a uniform mixture over the prompt's words and a background word, each
  with its own distribution over latents (IBM model 1). An undocumented trace has one distribution of its own.

`codebook` learns this prior together with emissions. `fit_prior` learns it alone, for emissions that a language model
gives.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ra3gym.abstractions.inference.posterior import FloatArray, Infer, IntArray, LatentChain, posterior
from ra3gym.abstractions.latents.corpus import LineCorpus
from ra3gym.errors import ConfigError


def chain_under(
    corpus: LineCorpus, log_emission_UK: FloatArray, row_N: IntArray, keep_U1: FloatArray, word_WK: FloatArray
) -> LatentChain:
    """What the posterior over a corpus' latents depends on, under a gate and distributions of fresh latents.

    Args:
        corpus: the traces.
        log_emission_UK: `log p(line | latent)` in nats, by row.
        row_N: the row of each line.
        keep_U1: `p(keep | previous line)`; the last entry, of first lines, is unused.
        word_WK: `p(latent | word)`.
    """
    return LatentChain(
        log_emission_UK=log_emission_UK,
        row_N=row_N,
        keep_N=keep_U1[corpus.previous_N],
        fresh_PK=trace_priors(corpus, word_WK),
        fresh_row_M=np.arange(corpus.num_traces),
        offsets=corpus.offsets,
    )


def gate(corpus: LineCorpus, keep_count_N: FloatArray, weight_N: FloatArray, gate_prior: float) -> FloatArray:
    """Estimate `p(keep | previous line)`, `(U + 1,)`, from expected keeps plus `gate_prior` of each outcome."""
    size = len(corpus.templates) + 1
    kept = np.bincount(corpus.previous_N, weights=keep_count_N, minlength=size)
    total = np.bincount(corpus.previous_N, weights=weight_N, minlength=size)
    return np.asarray((kept + gate_prior) / (total + 2 * gate_prior))


def trace_priors(corpus: LineCorpus, word_WK: FloatArray) -> FloatArray:
    """`p(fresh latent | prompt)` of each trace, `(M, K)`: the mean of its words' distributions."""
    summed_MK = np.add.reduceat(word_WK[corpus.word_ids], corpus.word_offsets[:-1], axis=0)
    return np.asarray(summed_MK / np.diff(corpus.word_offsets)[:, None])


def word_distributions(
    corpus: LineCorpus, word_WK: FloatArray, prior_MK: FloatArray, switch_counts_MK: FloatArray
) -> FloatArray:
    """IBM model 1's M-step: credit each fresh latent to the prompt's words in proportion to their shares, `(W, K)`."""
    lengths_M = np.diff(corpus.word_offsets)
    trace_of_word = np.repeat(np.arange(corpus.num_traces), lengths_M)
    credit = (switch_counts_MK / (prior_MK * lengths_M[:, None]))[trace_of_word] * word_WK[corpus.word_ids]
    counts_WK = np.full_like(word_WK, 1e-2)
    np.add.at(counts_WK, corpus.word_ids, credit)
    return np.asarray(counts_WK / counts_WK.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class FittedPrior:
    """A prior fitted to emissions.

    Attributes:
        chain: the emissions under it.
        word_WK: `p(latent | word)`.
        evidence: nats per line, of the parameters that each iteration started from; a bound on it where an approximate
            E-step gave it.
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
    """Fit gate and fresh latents by EM to fixed emissions; the evidence rises in every iteration.

    Args:
        corpus: the traces; `log_emission_NK` has a row for each of their lines.
        log_emission_NK: `log p(line | latent)` in nats.
        infer: the E-step; exact by default.
        iterations: 1 or more; few are enough, since emissions do not move.
        gate_prior: pseudo-counts of keeping and of switching for each previous line.

    Raises:
        ConfigError: fewer than 1 iteration, or a `gate_prior` that is not positive.
        DataError: a trace is impossible under every path.
    """
    if iterations < 1 or gate_prior <= 0:
        raise ConfigError(f"iterations={iterations}, gate_prior={gate_prior}: give at least 1, and a positive number")
    N, K = log_emission_NK.shape
    line_N, weight_N = np.arange(N), np.ones(N)
    word_WK = np.full((len(corpus.words), K), 1.0 / K)
    evidence: list[float] = []
    chain = chain_under(corpus, log_emission_NK, line_N, np.full(len(corpus.templates) + 1, 0.5), word_WK)
    for _ in range(iterations):
        result = infer(chain)
        evidence.append(float(result.log_evidence_M.sum() / N))
        keep_U1 = gate(corpus, 1.0 - result.switch_N, weight_N, gate_prior)
        word_WK = word_distributions(corpus, word_WK, chain.fresh_PK, result.fresh_MK)
        chain = chain_under(corpus, log_emission_NK, line_N, keep_U1, word_WK)
    return FittedPrior(chain, word_WK, tuple(evidence))
