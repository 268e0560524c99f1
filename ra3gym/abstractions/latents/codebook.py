"""A codebook of latents over lines of code, learned by EM with exact posteriors.

The generative model of a trace with lines x_1 ... x_T:

- Latents follow the prior of `ra3gym.abstractions.latents.prior`: a learned gate, and fresh latents from the prompt's
  words. (One constant `alpha` with uniform fresh latents collapses: a switch then costs log K nats, more than the
  identity of an intent is worth.)
- The line is drawn from `p(x_t | x_{t-1}, z_t)`: counts, backed off to `p(x_t | z_t)` and to `p(x_t)`. It depends on
  the local state and the latent but not on the prompt; else the latent would be ignored.

EM needs an initialization that separates intents: k-means on the positive pointwise mutual information between lines
and prompt words, in which rare lines count as much as common ones. It also needs restarts; the one with the highest
evidence is kept. No planted label is read.

Only documented traces teach where an intent begins. A chain over lines explains an undocumented trace as well without
any switch, so at full weight the undocumented majority would teach EM not to switch. These traces weigh
`undocumented_weight` (0 by default) while learning; after that, the path of every trace is inferred.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.cluster.vq import kmeans2, vq
from scipy.sparse import csr_array

from ra3gym.abstractions.inference.posterior import (
    BoolArray,
    FloatArray,
    Infer,
    IntArray,
    LatentChain,
    posterior,
    viterbi_paths,
)
from ra3gym.abstractions.latents.corpus import BACKGROUND_WORD, NO_PROMPT_WORD, LineCorpus
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.abstractions.latents.prior import chain_under, gate, word_distributions
from ra3gym.errors import ConfigError


@dataclass(frozen=True)
class CodebookConfig:
    """How the codebook is learned.

    Attributes:
        num_latents: size K of the codebook. Give more than the intents you expect, so that rare ones find a place.
        restarts: EM runs from different initializations; the one with the highest training evidence is kept.
        iterations: EM iterations of a run, 10 to 50.
        backoff: pseudo-counts of the less specific emission at each back-off level, 2 to 100. With too few, the
            previous line explains what the latent should.
        undocumented_weight: weight of an undocumented trace while learning, 0 to 1; a documented one weighs 1.
        gate_prior: pseudo-counts of keeping and of switching for each previous line.
        anneal: the exponent of line likelihoods in the first iteration. It rises linearly to 1, its value in the second
            half. 1 is no annealing; 0.2 to 0.5 softens what the initialization decided.
        revive_below: a latent with less than this share of its fair part of the lines (1 / K) gets a random half of the
            lines of the most used latent, until three iterations before the end. 0 lets latents die; 0.05 to 0.3.
        window: how many following lines add to a line's features at initialization. (An intent often starts with lines
            that carry no information, such as `out = []`.)
        decay: the weight of each following line, relative to the previous one.
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
            raise ConfigError(f"num_latents={self.num_latents}: a codebook needs at least 2 latents, give 2 or more")
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
    """A learned codebook, for the corpus it was learned on.

    Attributes:
        emission_YK: `p(line | previous line, latent)`, by distinct pair.
        keep_U1: `p(keep | previous line)`, `(U + 1,)`; the last entry, of first lines, is unused.
        word_WK: `p(latent | word)`.
        evidence: weighted log p of the corpus in nats per line, of the parameters that each EM iteration started from.
    """

    emission_YK: FloatArray
    keep_U1: FloatArray
    word_WK: FloatArray
    evidence: tuple[float, ...]

    @property
    def num_latents(self) -> int:
        return int(self.emission_YK.shape[1])


def learn_codebook(
    corpus: LineCorpus,
    config: CodebookConfig,
    rng: np.random.Generator,
    new_infer: Callable[[np.random.Generator], Infer] = lambda _: posterior,
) -> Codebook:
    """Fit a codebook by EM from `config.restarts` initializations and return the one with the highest evidence.

    Args:
        corpus: the traces.
        config: how to learn.
        rng: the source of randomness; each restart gets a generator of its own.
        new_infer: makes the E-step of one restart: exact forward-backward by default. An E-step that learns may carry
            what it learned from iteration to iteration.
    """
    runs = []
    for seed in rng.integers(2**63, size=config.restarts):
        generator = np.random.default_rng(seed)
        runs.append(_fit(corpus, config, generator, new_infer(generator)))
    return max(runs, key=lambda codebook: codebook.evidence[-1])


def viterbi(corpus: LineCorpus, codebook: Codebook) -> list[LatentPath]:
    """Return the most probable path of each trace."""
    return paths_of(corpus, *viterbi_paths(latent_chain(corpus, codebook)))


def paths_of(corpus: LineCorpus, latent_N: IntArray, switch_N: BoolArray) -> list[LatentPath]:
    """Cut latents and switches of all lines into one path per trace."""
    return [
        LatentPath(tuple(latent_N[a:b].tolist()), tuple(switch_N[a:b].tolist()))
        for a, b in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)
    ]


def latent_chain(corpus: LineCorpus, codebook: Codebook) -> LatentChain:
    """What the posterior over the corpus' latents depends on, under a codebook."""
    return chain_under(corpus, np.log(codebook.emission_YK), corpus.pair_N, codebook.keep_U1, codebook.word_WK)


def words_by_latent(corpus: LineCorpus, word_WK: FloatArray, share: float = 0.15) -> list[tuple[str, ...]]:
    """Return, for each latent, the prompt words that call for it, the most decided word first.

    These are the words w with `p(latent | w) >= share`, provided that this is not below what the background word gives
    to the latent. Words of one latent are synonyms. Latents that share a word are ways to write the same thing. A
    latent that no word calls for has no words.
    """
    names: list[tuple[str, ...]] = []
    for share_W in word_WK.T:
        least = max(share, share_W[BACKGROUND_WORD])
        chosen = [word for word in np.argsort(-share_W, kind="stable") if share_W[word] >= least]
        names.append(tuple(corpus.words[word] for word in chosen if word > NO_PROMPT_WORD))
    return names


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
        result = infer(replace(chain, log_emission_UK=exponent * chain.log_emission_UK) if exponent < 1.0 else chain)
        evidence.append(float(weight_M @ result.log_evidence_M / weight_N.sum()))
        counts_YK = lines_by_pair @ result.marginal_NK
        word_WK = word_distributions(corpus, word_WK, chain.fresh_PK, weight_M[:, None] * result.fresh_MK)
        if iteration < config.iterations - 3:
            _revive(counts_YK, word_WK, config.revive_below, rng)
        emission_YK = _emissions(corpus, 1e-9 + counts_YK, config.backoff)
        keep_U1 = gate(corpus, weight_N * (1.0 - result.switch_N), weight_N, config.gate_prior)
    return Codebook(emission_YK, keep_U1, word_WK, tuple(evidence))


def _revive(counts_YK: FloatArray, word_WK: FloatArray, below: float, rng: np.random.Generator) -> None:
    """Split the most used latent, in place, for each latent with less than `below` of its fair part of the lines."""
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
    """`p(line | previous line, latent)` by pair, `(Y, K)`, backed off to `p(line | latent)`, then to `p(line)`."""
    U, K = len(corpus.templates), counts_YK.shape[1]
    line_UK, previous_UK = np.zeros((U, K)), np.zeros((U + 1, K))  # nothing precedes a first line: row U
    np.add.at(line_UK, corpus.pair_line_Y, counts_YK)
    np.add.at(previous_UK, corpus.pair_previous_Y, counts_YK)
    line_U = line_UK.sum(axis=1)
    line_given_latent_UK = (line_UK + backoff * (line_U / line_U.sum())[:, None]) / (line_UK.sum(axis=0) + backoff)
    return np.asarray(
        (counts_YK + backoff * line_given_latent_UK[corpus.pair_line_Y])
        / (previous_UK[corpus.pair_previous_Y] + backoff)
    )


def _initial_counts(
    corpus: LineCorpus, config: CodebookConfig, weight_N: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Emission counts, `(Y, K)`, from k-means over the association of lines, and lines after them, with prompt words.

    Without any documented trace there are no words to associate with: each distinct line gets a random latent.
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
            # A small corpus has fewer distinct lines than latents: the remaining latents start empty.
            warnings.filterwarnings("ignore", "One of the clusters is empty")
            centers_KW, _ = kmeans2(features_NW[_balanced(corpus, weight_N, rng)], K, minit="++", iter=20, rng=rng)
        latent_N, _ = vq(features_NW, centers_KW)
    else:
        latent_N = rng.integers(K, size=len(corpus.templates))[corpus.line_N]
    np.add.at(counts_YK, (corpus.pair_N, latent_N), weight_N)
    return counts_YK


def _balanced(corpus: LineCorpus, weight_N: FloatArray, rng: np.random.Generator, at_most: int = 40) -> IntArray:
    """Choose a random `at_most` of each distinct line to cluster, so that rare intents get clusters."""
    order = rng.permutation(np.flatnonzero(weight_N > 0))
    types = corpus.line_N[order]
    by_type = np.argsort(types, kind="stable")
    starts = np.searchsorted(types[by_type], types[by_type])
    rank = np.arange(len(order)) - starts
    return np.asarray(order[by_type[rank < at_most]])


def _positive_pmi(corpus: LineCorpus) -> FloatArray:
    """`max(0, log p(line, word) / (p(line) p(word)))` over documented traces, `(U, W)`."""
    joint_UW = np.zeros((len(corpus.templates), len(corpus.words)))
    for m in np.flatnonzero(corpus.documented_M):
        lines = corpus.line_N[corpus.offsets[m] : corpus.offsets[m + 1]]
        words = corpus.word_ids[corpus.word_offsets[m] : corpus.word_offsets[m + 1]]
        np.add.at(joint_UW, (lines[:, None], words[words != BACKGROUND_WORD][None, :]), 1.0)
    expected_UW = joint_UW.sum(axis=1, keepdims=True) * joint_UW.sum(axis=0, keepdims=True) / joint_UW.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi_UW = np.log(joint_UW / expected_UW)
    return np.asarray(np.nan_to_num(np.maximum(pmi_UW, 0.0), nan=0.0, posinf=0.0))
