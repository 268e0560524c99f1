"""Are the latents used, and do they say anything about the lines? Measures of a codebook, and a verdict in words.

Latents fail in three ways: they *collapse* (one of them takes all lines), they are *never switched*, or they are
*ignored* (many are used, but a line is as likely under the wrong one). The measures see each on its own: perplexity of
usage, switch rate, and mutual information with the lines or the gain over shuffled latents.

Shapes: N lines in all, M traces, S segments, K latents. All information is in nats.
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
"""Emissions are raised to this many nats, so that means exist where a latent rules a line out."""

NEAR_ZERO_INFORMATION = 0.05
NEAR_ZERO_GAIN = 0.02
NEAR_ONE_PERPLEXITY = 1.5
NEAR_NO_SWITCHES = 0.01

_LINES_AT_ONCE = 1 << 16


def usage_perplexity(counts_K: npt.ArrayLike) -> float:
    """`exp` of the entropy of usage: how many latents, used alike, would be as diverse; between 1 and K.

    Raises:
        DataError: counts that are negative, or all zero.
    """
    return float(np.exp(entr(_shares(counts_K)).sum()))


def dead_latents(counts_K: npt.ArrayLike, share: float = 0.0) -> IntArray:
    """The latents that take at most `share` of the usage, in ascending order; by default those never used.

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
    """I(z; line type) in nats, the plug-in estimate less what the same segments have under shuffled latents.

    The plug-in estimate from finite counts is above zero even where latents mean nothing. So the mean over `shuffles`
    permutations of the segments' latents is taken off, which is what it is worth then: near 0 (it may be just below)
    for latents that say nothing, and too low rather than too high for latents that say much. (The Miller-Madow
    correction supposes independent lines and well-filled tables; lines of a segment share a latent, and most pairs of
    latent and line type never occur.)

    Raises:
        DataError: paths that do not fit the corpus.
        ConfigError: no shuffles.
    """
    if shuffles < 1:
        raise ConfigError(f"shuffles={shuffles}: the bias is measured on at least 1")
    latent_N, switch_N = _joined(paths, corpus.offsets)
    expected = np.mean([_plug_in(_permuted(latent_N, switch_N, rng), corpus.line_N) for _ in range(shuffles)])
    return float(_plug_in(latent_N, corpus.line_N) - expected)


def gain_over_shuffled(
    chain: LatentChain, paths: Sequence[LatentPath], rng: np.random.Generator, *, shuffles: int = 8
) -> float:
    """Mean over lines of `log p(line | z) - log p(line | another segment's z)`, in nats per line.

    Emissions are the chain's (`latent_chain(corpus, codebook)`, say) and see what these see: for a codebook, the line
    before. The other latent comes from permuting the segments' latents over the corpus, `shuffles` times.

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
    """What each line's latent is worth, per trace and line, in nats: `log p(line | z) - log sum_k p(k) p(line | k)`.

    `p(k)` is the latent's prior in that trace, its distribution of fresh latents: a kept latent was once drawn from it
    too, so that it is the marginal prior at every line.

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
        dead: the latents that no line is under.
        switch_rate: share of the lines that may switch (all but first ones) that do; NaN when there are none.
        mean_duration: lines per segment.
        information: I(z; line type) in nats; see `mutual_information_lines`.
        gain: nats per line; see `gain_over_shuffled`. `None` where there was no chain to score lines with.
        collapsed, never_switched, ignored: what is wrong.
        text: one sentence on what is wrong and what to try, or that nothing is.
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
    """Measure the latents of a corpus and say what is wrong.

    Args:
        corpus: the traces as line types.
        paths: their latents.
        num_latents: K, unused ones included.
        rng: shuffles latents for comparison.
        chain: scores lines under latents, where the E-step has a likelihood.

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
        # The gain sees what emissions see; information alone may be high because latents repeat the line before.
        ignored=information < NEAR_ZERO_INFORMATION if gain is None else gain < NEAR_ZERO_GAIN,
        text="",
    )
    return replace(diagnosis, text=_in_words(diagnosis))


def _in_words(found: LatentDiagnosis) -> str:
    """One sentence: the worst fault (others follow from it) and what to try, or how things stand."""
    measured = f"I(z; line) is {found.information:.2f} nats"
    if found.gain is not None:
        measured += f", the gain over shuffled latents {found.gain:.2f} nats per line"
    if found.collapsed:
        return (
            f"The latents have collapsed: their usage is worth {found.perplexity:.2f} of {found.num_latents} latents; "
            "try more restarts, an initialisation that separates intents, or a distribution of fresh latents that "
            "depends on the prompt."
        )
    if found.never_switched:
        return (
            f"Latents are never switched: only {found.switch_rate:.1%} of the lines that may start a segment do; try a "
            "learned gate or a lower cost of switching, and let documented traces alone teach where intents begin."
        )
    if found.ignored:
        return (
            f"The latents are ignored: {measured}, about as much as latents without meaning have; try stronger "
            "back-off, so that the line before explains less, keep the prompt out of the emissions, or document more "
            "traces."
        )
    unused = f"; {len(found.dead)} of {found.num_latents} are never used" if found.dead else ""
    return f"The latents are used and say something about the lines: {measured}{unused}."


def _shares(counts_K: npt.ArrayLike) -> FloatArray:
    counts = np.asarray(counts_K, dtype=np.float64)
    if counts.ndim != 1 or not (counts >= 0).all() or not 0 < counts.sum() < np.inf:
        raise DataError(f"usage counts {counts.tolist()}: give one count per latent, none negative, not all zero")
    return np.asarray(counts / counts.sum())


def _joined(paths: Sequence[LatentPath], offsets: IntArray) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """All paths in a row: `(latent_N, switch_N)`; `DataError` when they are not those of these traces."""
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
    """The same segments, their latents permuted over the corpus."""
    return np.asarray(rng.permutation(latent_N[switch_N])[np.cumsum(switch_N) - 1])


def _plug_in(latent_N: IntArray, line_N: IntArray) -> float:
    """I(z; line) in nats of the observed frequencies."""
    pair_N = latent_N * (line_N.max() + 1) + line_N
    entropies = [entr(np.unique(x, return_counts=True)[1] / len(x)).sum() for x in (latent_N, line_N, pair_N)]
    return float(entropies[0] + entropies[1] - entropies[2])
