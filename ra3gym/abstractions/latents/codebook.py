"""A codebook of latents over lines of code, learned by EM with exact posteriors.

The generative model of a trace with prompt words W and lines x_1 ... x_T:

- a *learned gate* `p(keep | x_{t-1})` decides whether line t stays under its latent. (One constant `alpha` with a
  uniform fresh latent collapses: a switch then costs log K nats, more than the identity of an intent is worth.)
- a fresh latent is drawn from `p(z | W)`, a uniform mixture over the prompt's words and a background word, each
  with its own distribution over latents (IBM model 1); an undocumented trace has one distribution of its own.
- the line is drawn from `p(x_t | x_{t-1}, z_t)`: counts, backed off to `p(x_t | z_t)` and to `p(x_t)`. It sees the
  local state and the latent but not the prompt, else the latent would be ignored.

EM needs an initialisation that separates intents (k-means on positive pointwise mutual information between lines
and prompt words, with equal say for rare lines) and restarts; the restart with the highest evidence is kept. No
planted label is read.

Only documented traces teach where an intent begins: a chain over lines explains an undocumented trace as well
without any switch, so at full weight the undocumented majority talks EM out of switching. They weigh
`undocumented_weight` (0 by default) while learning; the path of every trace is inferred with what was learned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2, vq
from scipy.sparse import csr_array

from ra3gym.abstractions.inference.posterior import (
    BoolArray,
    FloatArray,
    IntArray,
    LatentChain,
    Posterior,
    posterior,
    viterbi_paths,
)
from ra3gym.abstractions.latents.corpus import BACKGROUND_WORD, NO_PROMPT_WORD, LineCorpus
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError


@dataclass(frozen=True)
class CodebookConfig:
    """How the codebook is learned.

    Attributes:
        num_latents: size K of the codebook. More than the intents one expects, so that rare ones find a place.
        restarts: EM runs from different initialisations; the one with the highest training evidence is kept.
        iterations: EM iterations a run, 10 to 50.
        backoff: pseudo-counts given to the less specific emission at each back-off level, 2 to 100. Too few, and the
            line before explains what the latent should.
        undocumented_weight: how much an undocumented trace counts beside a documented one while learning, 0 to 1.
        gate_prior: pseudo-counts of keeping and of switching for each previous line.
        anneal: the exponent of line likelihoods in the first iteration; it rises linearly to 1, which it has in the
            second half. 1 leaves annealing out; 0.2 to 0.5 softens what the initialisation decided.
        revive_below: a latent that stands for less than this share of its fair part of the lines (1 / K) gets a random
            half of those of the most used one, until three iterations before the end. 0 lets latents die; 0.05 to 0.3.
        window: a line's features at initialisation are its own and those of as many lines that follow (an intent
            often starts with lines that say nothing, `out = []`).
        decay: the weight of each following line, relative to the one before.
    """

    num_latents: int = 48
    restarts: int = 8
    iterations: int = 15
    backoff: float = 20.0
    undocumented_weight: float = 0.0
    gate_prior: float = 0.5
    anneal: float = 1.0
    revive_below: float = 0.0
    window: int = 3
    decay: float = 0.7

    def __post_init__(self) -> None:
        if self.num_latents < 2:
            raise ConfigError(f"num_latents={self.num_latents}: a codebook needs at least 2 latents")
        if self.restarts < 1 or self.iterations < 1:
            raise ConfigError(f"restarts={self.restarts}, iterations={self.iterations}: give at least 1 of each")
        if self.backoff <= 0 or self.gate_prior <= 0:
            raise ConfigError(f"backoff={self.backoff}, gate_prior={self.gate_prior}: pseudo-counts must be positive")
        if not 0.0 <= self.undocumented_weight <= 1.0:
            raise ConfigError(f"undocumented_weight={self.undocumented_weight}: give a weight from 0 to 1")
        if not 0.0 < self.anneal <= 1.0 or not 0.0 <= self.revive_below < 1.0:
            raise ConfigError(
                f"anneal={self.anneal}, revive_below={self.revive_below}: give a value in (0, 1], and one in [0, 1)"
            )
        if self.window < 0 or not 0.0 <= self.decay <= 1.0:
            raise ConfigError(f"window={self.window}, decay={self.decay}: give at least 0, and a value from 0 to 1")


@dataclass(frozen=True)
class Codebook:
    """A learned codebook, tied to the corpus it was learned on.

    emission_YK: p(line | previous line, latent) by pair type. keep_U1: p(keep | previous line), the last entry for a
    first line (unused). word_WK: p(latent | word). evidence: weighted log p of the corpus in nats per line, of the
    parameters that each EM iteration started from.
    """

    emission_YK: FloatArray
    keep_U1: FloatArray
    word_WK: FloatArray
    evidence: tuple[float, ...]

    @property
    def num_latents(self) -> int:
        return int(self.emission_YK.shape[1])


Infer = Callable[[LatentChain], Posterior]
"""Finds what an EM iteration needs: expected counts under a posterior, and its evidence (or a bound on it)."""


def learn_codebook(
    corpus: LineCorpus,
    config: CodebookConfig,
    rng: np.random.Generator,
    new_infer: Callable[[np.random.Generator], Infer] = lambda _: posterior,
) -> Codebook:
    """Fit by EM from `config.restarts` initialisations and keep the one with the highest evidence.

    `new_infer` makes the E-step of one restart: exact forward-backward by default; one that learns may carry over what
    it learned from iteration to iteration.
    """
    runs = []
    for seed in rng.integers(2**63, size=config.restarts):
        generator = np.random.default_rng(seed)
        runs.append(_fit(corpus, config, generator, new_infer(generator)))
    return max(runs, key=lambda codebook: codebook.evidence[-1])


def viterbi(corpus: LineCorpus, codebook: Codebook) -> list[LatentPath]:
    """The most probable path of each trace."""
    return paths_of(corpus, *viterbi_paths(latent_chain(corpus, codebook)))


def paths_of(corpus: LineCorpus, latent_N: IntArray, switch_N: BoolArray) -> list[LatentPath]:
    """Latents and switches of all lines, cut into traces."""
    return [
        LatentPath(tuple(latent_N[a:b].tolist()), tuple(switch_N[a:b].tolist()))
        for a, b in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)
    ]


def latent_chain(corpus: LineCorpus, codebook: Codebook) -> LatentChain:
    """What the posterior over the corpus' latents depends on."""
    return LatentChain(
        log_emission_UK=np.log(codebook.emission_YK),
        row_N=corpus.pair_N,
        keep_N=codebook.keep_U1[corpus.previous_N],
        fresh_PK=trace_priors(corpus, codebook.word_WK),
        fresh_row_M=np.arange(corpus.num_traces),
        offsets=corpus.offsets,
    )


def words_by_latent(corpus: LineCorpus, word_WK: FloatArray, share: float = 0.15) -> list[tuple[str, ...]]:
    """For each latent, the prompt words that call for it, most decided first.

    These are the words w with `p(latent | w) >= share`, and above what the background word gives to the latent. Words
    of one latent are synonyms; latents that share a word are ways to write the same thing. A latent that no word
    calls for gets none.
    """
    named: list[tuple[str, ...]] = []
    for share_W in word_WK.T:
        least = max(share, share_W[BACKGROUND_WORD])
        chosen = [word for word in np.argsort(-share_W, kind="stable") if share_W[word] >= least]
        named.append(tuple(corpus.words[word] for word in chosen if word > NO_PROMPT_WORD))
    return named


def _fit(corpus: LineCorpus, config: CodebookConfig, rng: np.random.Generator, infer: Infer) -> Codebook:
    K = config.num_latents
    weight_M = np.where(corpus.documented_M, 1.0, config.undocumented_weight if corpus.documented_M.any() else 1.0)
    corpus, weight_M = corpus.traces(weight_M > 0), weight_M[weight_M > 0]
    weight_N = np.repeat(weight_M, np.diff(corpus.offsets))
    lines_by_pair = csr_array(
        (weight_N, (corpus.pair_N, np.arange(len(weight_N)))), (len(corpus.pair_line_Y), len(weight_N))
    )
    emission_YK = _emissions(corpus, _initial_counts(corpus, config, weight_N, rng), config.backoff)
    keep_U1 = np.full(len(corpus.templates) + 1, 0.5)
    word_WK = rng.dirichlet(np.full(K, 10.0), size=len(corpus.words))
    evidence: list[float] = []
    for iteration in range(config.iterations):
        chain = latent_chain(corpus, Codebook(emission_YK, keep_U1, word_WK, ()))
        rise = min(1.0, 2.0 * iteration / config.iterations)
        exponent = config.anneal + (1.0 - config.anneal) * rise
        found = infer(replace(chain, log_emission_UK=exponent * chain.log_emission_UK) if exponent < 1.0 else chain)
        evidence.append(float(weight_M @ found.log_evidence_M / weight_N.sum()))
        counts_YK = lines_by_pair @ found.marginal_NK
        word_WK = word_distributions(corpus, word_WK, chain.fresh_PK, weight_M[:, None] * found.fresh_MK)
        if iteration < config.iterations - 3:
            _revive(counts_YK, word_WK, config.revive_below, rng)
        emission_YK = _emissions(corpus, 1e-9 + counts_YK, config.backoff)
        keep_U1 = gate(corpus, weight_N * (1.0 - found.switch_N), weight_N, config.gate_prior)
    return Codebook(emission_YK, keep_U1, word_WK, tuple(evidence))


def _revive(counts_YK: FloatArray, word_WK: FloatArray, below: float, rng: np.random.Generator) -> None:
    """Split the most used latent, in place, for each one used less than `below` of its fair part of the lines."""
    usage_K = counts_YK.sum(axis=0)
    for dead in np.flatnonzero(usage_K < below * usage_K.mean()):
        crowded = int(usage_K.argmax())
        moved_Y = counts_YK[:, crowded] * rng.random(len(counts_YK))
        counts_YK[:, dead] += moved_Y
        counts_YK[:, crowded] -= moved_Y
        half_W = 0.5 * word_WK[:, crowded]
        word_WK[:, dead] += half_W
        word_WK[:, crowded] -= half_W
        usage_K = counts_YK.sum(axis=0)


def _emissions(corpus: LineCorpus, counts_YK: FloatArray, backoff: float) -> FloatArray:
    """p(line | previous, latent) by pair, backed off to p(line | latent), then to p(line)."""
    U, K = len(corpus.templates), counts_YK.shape[1]
    line_UK, context_UK = np.zeros((U, K)), np.zeros((U + 1, K))
    np.add.at(line_UK, corpus.pair_line_Y, counts_YK)
    np.add.at(context_UK, corpus.pair_previous_Y, counts_YK)
    line_U = line_UK.sum(axis=1)
    line_given_latent_UK = (line_UK + backoff * (line_U / line_U.sum())[:, None]) / (line_UK.sum(axis=0) + backoff)
    return np.asarray(
        (counts_YK + backoff * line_given_latent_UK[corpus.pair_line_Y])
        / (context_UK[corpus.pair_previous_Y] + backoff)
    )


def gate(corpus: LineCorpus, keep_count_N: FloatArray, weight_N: FloatArray, gate_prior: float) -> FloatArray:
    """p(keep | previous line) from expected numbers of keeps, with `gate_prior` pseudo-counts of each outcome."""
    size = len(corpus.templates) + 1
    kept = np.bincount(corpus.previous_N, weights=keep_count_N, minlength=size)
    total = np.bincount(corpus.previous_N, weights=weight_N, minlength=size)
    return np.asarray((kept + gate_prior) / (total + 2 * gate_prior))


def trace_priors(corpus: LineCorpus, word_WK: FloatArray) -> FloatArray:
    """p(fresh latent | prompt) of each trace: the mean of its words' distributions."""
    summed_MK = np.add.reduceat(word_WK[corpus.word_ids], corpus.word_offsets[:-1], axis=0)
    return np.asarray(summed_MK / np.diff(corpus.word_offsets)[:, None])


def word_distributions(
    corpus: LineCorpus, word_WK: FloatArray, prior_MK: FloatArray, switch_counts_MK: FloatArray
) -> FloatArray:
    """IBM model 1's M-step: each fresh latent is credited to the prompt's words in proportion to their shares."""
    lengths_M = np.diff(corpus.word_offsets)
    trace_of_word = np.repeat(np.arange(corpus.num_traces), lengths_M)
    credit = (switch_counts_MK / (prior_MK * lengths_M[:, None]))[trace_of_word] * word_WK[corpus.word_ids]
    counts_WK = np.full_like(word_WK, 1e-2)
    np.add.at(counts_WK, corpus.word_ids, credit)
    return np.asarray(counts_WK / counts_WK.sum(axis=1, keepdims=True))


def _initial_counts(
    corpus: LineCorpus, config: CodebookConfig, weight_N: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Emission counts from k-means over each line's association with prompt words, its followers' included.

    Without any documented trace there is nothing to associate with, and lines are assigned at random.
    """
    K = config.num_latents
    counts_YK = np.full((len(corpus.pair_line_Y), K), 1e-2)
    if corpus.documented_M.any():
        features_UW = _positive_pmi(corpus)
        trace_N = np.repeat(np.arange(corpus.num_traces), np.diff(corpus.offsets))
        features_NW = features_UW[corpus.line_N]
        for ahead in range(1, config.window + 1):
            same = trace_N[ahead:] == trace_N[:-ahead]
            features_NW[:-ahead][same] += config.decay**ahead * features_UW[corpus.line_N[ahead:][same]]
        features_NW /= np.linalg.norm(features_NW, axis=1, keepdims=True) + 1e-9
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            # A small corpus has fewer kinds of lines than there are latents: the latents left over start empty.
            warnings.filterwarnings("ignore", "One of the clusters is empty")
            centres_KW, _ = kmeans2(features_NW[_balanced(corpus, weight_N, rng)], K, minit="++", iter=20, rng=rng)
        latent_N, _ = vq(features_NW, centres_KW)
    else:
        latent_N = rng.integers(K, size=len(corpus.templates))[corpus.line_N]
    np.add.at(counts_YK, (corpus.pair_N, latent_N), weight_N)
    return counts_YK


def _balanced(
    corpus: LineCorpus, weight_N: FloatArray, rng: np.random.Generator, at_most: int = 40
) -> npt.NDArray[np.int64]:
    """Lines to cluster: a random `at_most` of each type among those that count, so that rare intents get clusters."""
    order = rng.permutation(np.flatnonzero(weight_N > 0))
    types = corpus.line_N[order]
    by_type = np.argsort(types, kind="stable")
    starts = np.searchsorted(types[by_type], types[by_type])
    rank = np.arange(len(order)) - starts
    return np.asarray(order[by_type[rank < at_most]])


def _positive_pmi(corpus: LineCorpus) -> FloatArray:
    """max(0, log p(line, word) / (p(line) p(word))) over documented traces, shape (U, W)."""
    joint_UW = np.zeros((len(corpus.templates), len(corpus.words)))
    for m in np.flatnonzero(corpus.documented_M):
        lines = corpus.line_N[corpus.offsets[m] : corpus.offsets[m + 1]]
        words = corpus.word_ids[corpus.word_offsets[m] : corpus.word_offsets[m + 1]]
        np.add.at(joint_UW, (lines[:, None], words[words != BACKGROUND_WORD][None, :]), 1.0)
    expected_UW = joint_UW.sum(axis=1, keepdims=True) * joint_UW.sum(axis=0, keepdims=True) / joint_UW.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi_UW = np.log(joint_UW / expected_UW)
    return np.asarray(np.nan_to_num(np.maximum(pmi_UW, 0.0), nan=0.0, posinf=0.0))
