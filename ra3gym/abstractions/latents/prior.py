"""The prior over latents that a codebook learns: a gate for each previous line, fresh latents from the prompt's words.

- The *gate* `p(keep | x_{t-1})` decides whether line t stays under its latent.
- A *fresh* latent is drawn from `p(z | words)`, a uniform mixture over the prompt's words and a background word, each
  with its own distribution over latents (IBM model 1). An undocumented trace has one distribution of its own.

`codebook` learns this prior together with emissions. `fit_prior` learns it alone, for emissions that a language model
gives.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ra3gym.abstractions.inference.posterior import FloatArray, Infer, IntArray, LatentChain, posterior
from ra3gym.abstractions.latents.corpus import LineCorpus
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError, DataError


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


@dataclass(frozen=True)
class Prior:
    """A gate and distributions of fresh latents.

    Attributes:
        keep_U1: `p(keep | previous line)`, `(U + 1,)`; the last entry, of first lines, is unused.
        word_WK: `p(latent | word)`.
    """

    keep_U1: FloatArray
    word_WK: FloatArray


def prior_of_paths(
    corpus: LineCorpus, paths: Sequence[LatentPath], num_latents: int, *, gate_prior: float = 0.5, iterations: int = 5
) -> Prior:
    """Estimate the prior from paths: where they switch, and which words their fresh latents are credited to.

    Args:
        corpus: the traces.
        paths: one for each trace.
        num_latents: K.
        gate_prior: pseudo-counts of keeping and of switching for each previous line.
        iterations: EM iterations on `p(latent | word)`.

    Raises:
        DataError: paths that do not fit the traces.
    """
    latent_N = np.array([z for path in paths for z in path.latents], dtype=np.int64)
    switch_N = np.array([switch for path in paths for switch in path.switches], dtype=np.float64)
    if len(latent_N) != corpus.offsets[-1] or len(paths) != corpus.num_traces:
        raise DataError(
            f"{len(paths)} paths with {len(latent_N)} lines for {corpus.num_traces} traces with "
            f"{corpus.offsets[-1]} lines: give one latent for each line"
        )
    keep_U1 = gate(corpus, 1.0 - switch_N, np.ones(len(latent_N)), gate_prior)
    trace_N = np.repeat(np.arange(corpus.num_traces), np.diff(corpus.offsets))
    fresh_MK = np.zeros((corpus.num_traces, num_latents))
    np.add.at(fresh_MK, (trace_N, latent_N), switch_N)
    word_WK = np.full((len(corpus.words), num_latents), 1.0 / num_latents)
    for _ in range(iterations):
        word_WK = word_distributions(corpus, word_WK, trace_priors(corpus, word_WK), fresh_MK)
    return Prior(keep_U1, word_WK)


def fit_prior(
    corpus: LineCorpus,
    log_emission_NK: FloatArray,
    infer: Infer = posterior,
    *,
    start: Prior | None = None,
    undocumented_weight: float = 1.0,
    iterations: int = 5,
    gate_prior: float = 0.5,
) -> FittedPrior:
    """Fit gate and fresh latents by EM to fixed emissions; the evidence rises in every iteration.

    EM ends at a local optimum. From uniform distributions a switch costs log K nats, and where emissions tell latents
    apart by little, that optimum has no switches. So start from a prior that is known, such as `prior_of_paths` of the
    annotations that the model was trained on.

    Args:
        corpus: the traces; `log_emission_NK` has a row for each of their lines.
        log_emission_NK: `log p(line | latent)` in nats.
        infer: the E-step; exact by default.
        start: where EM starts; gates of one half and uniform latents when `None`.
        undocumented_weight: weight of an undocumented trace, 0 to 1; a documented one weighs 1. Where no trace is
            documented, all weigh 1. The evidence is weighted too.
        iterations: 1 or more; few are enough, since emissions do not move.
        gate_prior: pseudo-counts of keeping and of switching for each previous line.

    Raises:
        ConfigError: fewer than 1 iteration, a weight out of range, or a `gate_prior` that is not positive.
        DataError: a trace is impossible under every path.
    """
    if iterations < 1 or gate_prior <= 0:
        raise ConfigError(f"iterations={iterations}, gate_prior={gate_prior}: give at least 1, and a positive number")
    N, K = log_emission_NK.shape
    if not 0.0 <= undocumented_weight <= 1.0:
        raise ConfigError(f"undocumented_weight={undocumented_weight}: give a weight from 0 to 1")
    weight_M = np.where(corpus.documented_M, 1.0, undocumented_weight if corpus.documented_M.any() else 1.0)
    line_N, weight_N = np.arange(N), np.repeat(weight_M, np.diff(corpus.offsets))
    if start is None:
        start = Prior(np.full(len(corpus.templates) + 1, 0.5), np.full((len(corpus.words), K), 1.0 / K))
    word_WK = start.word_WK
    evidence: list[float] = []
    chain = chain_under(corpus, log_emission_NK, line_N, start.keep_U1, word_WK)
    for _ in range(iterations):
        result = infer(chain)
        evidence.append(float(weight_M @ result.log_evidence_M / weight_N.sum()))
        keep_U1 = gate(corpus, weight_N * (1.0 - result.switch_N), weight_N, gate_prior)
        word_WK = word_distributions(corpus, word_WK, chain.fresh_PK, weight_M[:, None] * result.fresh_MK)
        chain = chain_under(corpus, log_emission_NK, line_N, keep_U1, word_WK)
    return FittedPrior(chain, word_WK, tuple(evidence))
