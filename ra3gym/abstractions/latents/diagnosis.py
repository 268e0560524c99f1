"""Are the latents used, and are they informative about the lines? Measures of a codebook, and a sentence about them.

Latents fail in three ways: they *collapse* (one of them takes all lines), they are *never switched*, or they are
*ignored* (many are used, but a line is as likely under a wrong one). A measure detects each of them: the perplexity of
usage, the switch rate, and the mutual information with lines or the gain over shuffled latents.

All information is in nats. Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import entr, logsumexp

from ra3gym.abstractions.inference.posterior import LatentChain
from ra3gym.abstractions.latents.corpus import LineCorpus
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LOWEST_LOG_PROBABILITY = -30.0
"""Emissions are raised to at least this many nats, so that means exist where a line is impossible under a latent."""

NEAR_ZERO_INFORMATION = 0.05
NEAR_ZERO_GAIN = 0.02
NEAR_ONE_PERPLEXITY = 1.5
NEAR_NO_SWITCHES = 0.01

_LINES_AT_ONCE = 1 << 16


def usage_perplexity(counts_K: npt.ArrayLike) -> float:
    """Return `exp` of the entropy of usage, between 1 and K: how many equally used latents would be as diverse.

    Raises:
        DataError: counts that are negative, or all zero.
    """
    return float(np.exp(entr(_shares(counts_K)).sum()))


def dead_latents(counts_K: npt.ArrayLike, share: float = 0.0) -> IntArray:
    """Return the latents with at most `share` of the usage, ascending; by default those that are never used.

    Raises:
        ConfigError: a share outside [0, 1).
        DataError: counts that are negative, or all zero.
    """
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"share={share}: give a share of the usage from 0 to 1")
    return np.flatnonzero(_shares(counts_K) <= share)


def mutual_information_lines(
    corpus: LineCorpus, paths: Sequence[LatentPath], rng: np.random.Generator, *, shuffles: int = 8
) -> float:
    """Estimate I(z; line) in nats: the plug-in estimate minus its mean under shuffled latents.

    The plug-in estimate from finite counts is above 0 even for latents without meaning. So its mean over `shuffles`
    permutations of the segments' latents is subtracted. The result is near 0 (possibly just below) for latents without
    information, and rather too low than too high for informative ones. (The Miller-Madow correction assumes independent
    lines and well-filled tables. But lines of a segment share a latent, and most pairs of latent and line never occur.)

    Raises:
        DataError: paths that do not fit the corpus.
        ConfigError: no shuffles.
    """
    if shuffles < 1:
        raise ConfigError(f"shuffles={shuffles}: give at least 1, to measure the bias")
    latent_N, switch_N = _joined(paths, corpus.offsets)
    expected = np.mean([_plug_in(_permuted(latent_N, switch_N, rng), corpus.line_N) for _ in range(shuffles)])
    return float(_plug_in(latent_N, corpus.line_N) - expected)


def gain_over_shuffled(
    chain: LatentChain, paths: Sequence[LatentPath], rng: np.random.Generator, *, shuffles: int = 8
) -> float:
    """Return the mean over lines of `log p(line | z) - log p(line | another segment's z)`, in nats per line.

    Emissions are those of the chain, for example `latent_chain(corpus, codebook)`, with their context: for a codebook,
    the previous line. The other latent is from `shuffles` permutations of the segments' latents over the corpus.

    Raises:
        DataError: paths that do not fit the chain.
        ConfigError: no shuffles.
    """
    if shuffles < 1:
        raise ConfigError(f"shuffles={shuffles}: give at least 1")
    latent_N, switch_N = _joined(paths, chain.offsets)
    log_emission_UK = _emissions(chain, latent_N)
    wrong = np.mean([log_emission_UK[chain.row_N, _permuted(latent_N, switch_N, rng)] for _ in range(shuffles)])
    return float(log_emission_UK[chain.row_N, latent_N].mean() - wrong)


def line_gains(chain: LatentChain, paths: Sequence[LatentPath]) -> tuple[tuple[float, ...], ...]:
    """Return the gain of each line's latent, by trace, in nats: `log p(line | z) - log sum_k p(k) p(line | k)`.

    `p(k)` is the trace's distribution of fresh latents. It is the marginal prior at every line, since a kept latent was
    drawn from it earlier.

    Raises:
        DataError: paths that do not fit the chain.
    """
    latent_N, _ = _joined(paths, chain.offsets)
    log_emission_UK = _emissions(chain, latent_N)
    with np.errstate(divide="ignore"):
        log_fresh_PK = np.log(chain.fresh_PK)
    fresh_row_N = np.repeat(chain.fresh_row_M, np.diff(chain.offsets))
    gain_N = np.empty(len(latent_N))
    for start in range(0, len(latent_N), _LINES_AT_ONCE):
        block = slice(start, start + _LINES_AT_ONCE)
        log_line_BK = log_emission_UK[chain.row_N[block]]
        marginal_B = logsumexp(log_line_BK + log_fresh_PK[fresh_row_N[block]], axis=1)
        gain_N[block] = log_line_BK[np.arange(len(log_line_BK)), latent_N[block]] - marginal_B
    return tuple(
        tuple(gain_N[start:stop].tolist()) for start, stop in zip(chain.offsets[:-1], chain.offsets[1:], strict=True)
    )


@dataclass(frozen=True)
class LatentDiagnosis:
    """How latents are used, and what is wrong with them.

    Attributes:
        perplexity: of the lines' latents, between 1 and `num_latents`.
        num_latents: K, the size of the codebook.
        dead: the latents of no line.
        switch_rate: share of switches among lines that may switch (all but first lines); NaN when there are none.
        mean_duration: lines per segment.
        information: I(z; line) in nats; see `mutual_information_lines`.
        gain: nats per line; see `gain_over_shuffled`. `None` without a chain.
        collapsed: whether one latent takes nearly all lines.
        never_switched: whether nearly no line switches.
        ignored: whether latents are hardly informative about lines.
        text: one sentence on the worst fault and what to try, or that there is none.
    """

    perplexity: float
    num_latents: int
    dead: tuple[int, ...]
    switch_rate: float
    mean_duration: float
    information: float
    gain: float | None
    collapsed: bool
    never_switched: bool
    ignored: bool
    text: str

    @property
    def healthy(self) -> bool:
        return not (self.collapsed or self.never_switched or self.ignored)


def diagnose(
    corpus: LineCorpus,
    paths: Sequence[LatentPath],
    num_latents: int,
    rng: np.random.Generator,
    *,
    chain: LatentChain | None = None,
) -> LatentDiagnosis:
    """Measure the latents of a corpus and name their worst fault.

    Args:
        corpus: the traces.
        paths: their latents.
        num_latents: K, unused latents included.
        rng: shuffles latents for comparison.
        chain: emissions and prior, if the E-step has a likelihood.

    Raises:
        DataError: paths that do not fit the corpus or the chain, or use a latent that is not below `num_latents`.
    """
    latent_N, switch_N = _joined(paths, corpus.offsets)
    if latent_N.max() >= num_latents:
        raise DataError(f"a path uses latent {latent_N.max()}, but there are {num_latents}, from 0")
    counts_K = np.bincount(latent_N, minlength=num_latents)
    perplexity = usage_perplexity(counts_K)
    may_switch_N = np.ones(len(latent_N), dtype=bool)
    may_switch_N[corpus.offsets[:-1]] = False
    switch_rate = float(switch_N[may_switch_N].mean()) if may_switch_N.any() else float("nan")
    information = mutual_information_lines(corpus, paths, rng)
    gain = None if chain is None else gain_over_shuffled(chain, paths, rng)
    diagnosis = LatentDiagnosis(
        perplexity=perplexity,
        num_latents=num_latents,
        dead=tuple(dead_latents(counts_K).tolist()),
        switch_rate=switch_rate,
        mean_duration=float(len(latent_N) / switch_N.sum()),
        information=information,
        gain=gain,
        collapsed=perplexity < NEAR_ONE_PERPLEXITY,
        never_switched=switch_rate < NEAR_NO_SWITCHES,
        # The gain considers context; information may be high only because latents repeat the previous line.
        ignored=information < NEAR_ZERO_INFORMATION if gain is None else gain < NEAR_ZERO_GAIN,
        text="",
    )
    return replace(diagnosis, text=_in_words(diagnosis))


def _in_words(diagnosis: LatentDiagnosis) -> str:
    """Write one sentence: the worst fault, from which others follow, and what to try; or the measures."""
    measured = f"I(z; line) is {diagnosis.information:.2f} nats"
    if diagnosis.gain is not None:
        measured += f", the gain over shuffled latents {diagnosis.gain:.2f} nats per line"
    if diagnosis.collapsed:
        return (
            f"The latents have collapsed: their usage is worth {diagnosis.perplexity:.2f} of {diagnosis.num_latents} "
            "latents; try more restarts, an initialization that separates intents, or a distribution of fresh latents "
            "that depends on the prompt."
        )
    if diagnosis.never_switched:
        return (
            f"Latents are never switched: only {diagnosis.switch_rate:.1%} of the lines that may start a segment do; "
            "try a learned gate or a lower cost of switching, and learn segment starts from documented traces only."
        )
    if diagnosis.ignored:
        return (
            f"The latents are ignored: {measured}, about as much as latents without meaning have; try stronger "
            "back-off, so that the previous line explains less, keep the prompt out of the emissions, or document more "
            "traces."
        )
    unused = f"; {len(diagnosis.dead)} of {diagnosis.num_latents} are never used" if diagnosis.dead else ""
    return f"The latents are used and informative about the lines: {measured}{unused}."


def _shares(counts_K: npt.ArrayLike) -> FloatArray:
    counts = np.asarray(counts_K, dtype=np.float64)
    if counts.ndim != 1 or not (counts >= 0).all() or not 0 < counts.sum() < np.inf:
        raise DataError(f"usage counts {counts.tolist()}: give one count per latent, none negative, not all zero")
    return np.asarray(counts / counts.sum())


def _joined(paths: Sequence[LatentPath], offsets: IntArray) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Join all paths: `(latent_N, switch_N)`; raises `DataError` when they do not fit the traces."""
    given, wanted = [len(path.latents) for path in paths], np.diff(offsets).tolist()
    if given != wanted:
        wrong = next((m for m, (a, b) in enumerate(zip(given, wanted, strict=False)) if a != b), None)
        if wrong is None:
            raise DataError(f"{len(given)} paths for {len(wanted)} traces: give one path for each trace")
        raise DataError(f"the path of trace {wrong} has {given[wrong]} lines, the trace has {wanted[wrong]}")
    latent_N = np.array([z for path in paths for z in path.latents])
    return latent_N, np.array([switch for path in paths for switch in path.switches])


def _emissions(chain: LatentChain, latent_N: IntArray) -> FloatArray:
    if latent_N.max() >= chain.num_latents:
        raise DataError(f"a path uses latent {latent_N.max()}, but the chain has {chain.num_latents}, from 0")
    return np.maximum(chain.log_emission_UK, LOWEST_LOG_PROBABILITY)


def _permuted(latent_N: IntArray, switch_N: npt.NDArray[np.bool_], rng: np.random.Generator) -> IntArray:
    """Permute the latents of segments over the corpus."""
    return np.asarray(rng.permutation(latent_N[switch_N])[np.cumsum(switch_N) - 1])


def _plug_in(latent_N: IntArray, line_N: IntArray) -> float:
    """Return I(z; line) in nats of the observed frequencies."""
    pair_N = latent_N * (line_N.max() + 1) + line_N
    entropies = [entr(np.unique(x, return_counts=True)[1] / len(x)).sum() for x in (latent_N, line_N, pair_N)]
    return float(entropies[0] + entropies[1] - entropies[2])
