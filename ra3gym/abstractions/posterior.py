"""Exact inference over latents under a sticky prior: ragged batches of traces, O(lines x latents), float64.

A trace's latents follow `p(z_1) = fresh(z_1)` and, for t > 1,

    p(z_t | z_{t-1}) = keep_t [z_t = z_{t-1}] + (1 - keep_t) fresh(z_t),

the sticky prior of RA3 (arXiv 2509.25810) with a stickiness `keep_t` for each line and a distribution of fresh latents
for each trace; `StickyPrior` is the special case of one stickiness and uniform fresh latents. Line t is emitted with
`p(line_t | z_t)`. A switch forgets where it came from, so the K x K transition needs sums only. Forward, with a_t the
filtered distribution, r_t the predicted one and c_t the normaliser,

    r_t(k) = keep_t a_{t-1}(k) + (1 - keep_t) fresh(k),   a_t(k) = r_t(k) b_t(k) / c_t,   log evidence = sum_t log c_t,

and backward, with g_t the smoothed distribution, which needs no emission again:

    g_{t-1}(k) = a_{t-1}(k) (keep_t g_t(k) / r_t(k) + (1 - keep_t) sum_j fresh(j) g_t(j) / r_t(j)).

Seen as control, choosing latents with reward `log p(line_t | z_t) + log p(z_t | z_{t-1})` at temperature 1 is
maximum-entropy RL: the soft-optimal value is the log evidence of the lines to come (`soft_values`), and the
soft-optimal policy is the posterior (`soft_policy`).

Shapes: N lines in all, M traces, R rows of emissions, K latents. The lines of trace m are `offsets[m]:offsets[m + 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.sticky_prior import StickyPrior
from ra3gym.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LatentChain:
    """A batch of traces, with all that the posterior over their latents depends on.

    log_emission_RK: rows of `log p(line | latent)`, in nats; `-inf` is allowed, NaN is not. row_N: the row of each
    line, so that equal lines share one. keep_N: the probability that a line keeps its latent without a fresh draw
    (unread for first lines). fresh_SK: distributions of fresh latents; fresh_row_M: each trace's. offsets: M + 1 ints.
    """

    log_emission_RK: FloatArray
    row_N: IntArray
    keep_N: FloatArray
    fresh_SK: FloatArray
    fresh_row_M: IntArray
    offsets: IntArray

    def __post_init__(self) -> None:
        if self.log_emission_RK.ndim != 2 or self.log_emission_RK.shape[1] < 2:
            raise DataError(
                f"emissions of shape {self.log_emission_RK.shape}: give (lines, latents), at least 2 latents"
            )
        if np.isnan(self.log_emission_RK).any() or np.isposinf(self.log_emission_RK).any():
            row = int(np.flatnonzero(~(self.log_emission_RK < np.inf).all(axis=1))[0])
            raise DataError(f"row {row} of the emissions holds NaN or +inf: they must be log-probabilities")
        if len(self.offsets) < 2 or (np.diff(self.offsets) < 1).any():
            raise DataError("there is no trace, or one without lines: drop it before inference")
        if not ((self.keep_N >= 0.0) & (self.keep_N <= 1.0)).all():
            raise DataError("keep_N holds values that are no probabilities")

    @classmethod
    def under(cls, prior: StickyPrior, log_emissions: Sequence[npt.ArrayLike]) -> LatentChain:
        """The chain of traces whose emissions are given one (T, K) array each, under one sticky prior.

        Raises:
            DataError: no traces, an empty one, NaN, or another K than the prior's.
        """
        arrays = [np.asarray(emissions, dtype=np.float64) for emissions in log_emissions]
        for index, array in enumerate(arrays):
            if array.ndim != 2 or array.shape[1] != prior.num_latents or len(array) == 0:
                raise DataError(
                    f"the emissions of trace {index} have shape {array.shape}: give (lines, {prior.num_latents}), at "
                    "least one line"
                )
        num_lines = sum(map(len, arrays))
        K = prior.num_latents
        return cls(
            log_emission_RK=np.concatenate(arrays) if arrays else np.zeros((0, K)),
            row_N=np.arange(num_lines),
            keep_N=np.full(num_lines, prior.alpha),
            fresh_SK=np.full((1, K), 1.0 / K),
            fresh_row_M=np.zeros(len(arrays), dtype=np.int64),
            offsets=np.cumsum([0, *map(len, arrays)]),
        )

    @property
    def num_traces(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_latents(self) -> int:
        return int(self.log_emission_RK.shape[1])

    @property
    def _arrays(self) -> tuple[FloatArray, IntArray, FloatArray, FloatArray, IntArray, IntArray]:
        return self.log_emission_RK, self.row_N, self.keep_N, self.fresh_SK, self.fresh_row_M, self.offsets


@dataclass(frozen=True)
class Posterior:
    """What forward-backward finds.

    log_evidence_M: `log p(trace)` in nats. marginal_NK: `p(z_t = k | trace)`. switch_N: the probability that the line
    starts a segment, that is, that its latent was drawn afresh (1 for first lines). fresh_MK: expected number of fresh
    draws of each latent in each trace.
    """

    log_evidence_M: FloatArray
    marginal_NK: FloatArray
    switch_N: FloatArray
    fresh_MK: FloatArray


def posterior(chain: LatentChain) -> Posterior:
    """Forward-backward; `DataError` when a trace is impossible under every path."""
    marginal_NK = np.empty((len(chain.row_N), chain.num_latents))
    log_evidence_M = np.empty(chain.num_traces)
    switch_N = np.empty(len(chain.row_N))
    fresh_MK = np.zeros((chain.num_traces, chain.num_latents))
    _forward(*chain._arrays, marginal_NK, log_evidence_M)
    _refuse_impossible(log_evidence_M)
    _smooth(*chain._arrays[2:], marginal_NK, switch_N, fresh_MK)
    return Posterior(log_evidence_M, marginal_NK, switch_N, fresh_MK)


def log_evidence(chain: LatentChain) -> FloatArray:
    """`log p(trace)` of each trace in nats, shape (M,); `-inf` where it is impossible."""
    log_evidence_M = np.empty(chain.num_traces)
    _forward(*chain._arrays, np.empty((len(chain.row_N), chain.num_latents)), log_evidence_M)
    return log_evidence_M


def sample_paths(chain: LatentChain, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
    """One path per trace from the posterior: `(latent_N, switch_N)`; `DataError` as in `posterior`."""
    filtered_NK = np.empty((len(chain.row_N), chain.num_latents))
    log_evidence_M = np.empty(chain.num_traces)
    _forward(*chain._arrays, filtered_NK, log_evidence_M)
    _refuse_impossible(log_evidence_M)
    return _sample(*chain._arrays[2:], filtered_NK, rng.random((len(chain.row_N), 2)))


def viterbi_paths(chain: LatentChain) -> tuple[IntArray, BoolArray]:
    """The most probable path of each trace: `(latent_N, switch_N)`.

    Keeping a latent and drawing the same one afresh are different events: a path says which it was.
    """
    return _viterbi(*chain._arrays)


def soft_values(chain: LatentChain) -> FloatArray:
    """`V_t(k) = log p(line_t, ... | z_{t-1} = k)` in nats, shape (N, K); in first lines, the same for every k.

    With lines as steps and `log p(line | z) + log p(z | previous)` as reward, this is the soft-optimal value ahead of
    the choice of z_t; at a first line it is the trace's log evidence.
    """
    return _soft_values(*chain._arrays)


def soft_policy(chain: LatentChain, values_NK: FloatArray) -> FloatArray:
    """The soft-optimal policy `p(z_t = k | z_{t-1} = j, lines)`, shape (N, K previous, K).

    `exp(log p(line_t | k) + log p(k | j) + V_{t+1}(k) - V_t(j))`: the posterior. For analysis, it is of size N K^2.
    """
    K = chain.num_latents
    last_N = np.zeros(len(chain.row_N), dtype=bool)
    last_N[chain.offsets[1:] - 1] = True
    first_N = np.zeros_like(last_N)
    first_N[chain.offsets[:-1]] = True
    ahead_NK = np.where(last_N[:, None], 0.0, np.roll(values_NK, -1, axis=0))
    trace_N = np.repeat(np.arange(chain.num_traces), np.diff(chain.offsets))
    fresh_NK = chain.fresh_SK[chain.fresh_row_M[trace_N]]
    keep_N = np.where(first_N, 0.0, chain.keep_N)
    prior_NKK = keep_N[:, None, None] * np.eye(K) + (1 - keep_N)[:, None, None] * fresh_NK[:, None, :]
    gain_NK = chain.log_emission_RK[chain.row_N] + ahead_NK
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(prior_NKK) + gain_NK[:, None, :] - values_NK[:, :, None]))


def _refuse_impossible(log_evidence_M: FloatArray) -> None:
    impossible = np.flatnonzero(np.isneginf(log_evidence_M))
    if len(impossible):
        raise DataError(f"trace {int(impossible[0])} has probability 0 under every path: no posterior exists")


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _forward(
    log_emission_RK: FloatArray,
    row_N: IntArray,
    keep_N: FloatArray,
    fresh_SK: FloatArray,
    fresh_row_M: IntArray,
    offsets: IntArray,
    filtered_NK: FloatArray,
    log_evidence_M: FloatArray,
) -> None:
    K = log_emission_RK.shape[1]
    for m in range(len(offsets) - 1):
        fresh_K = fresh_SK[fresh_row_M[m]]
        evidence = 0.0
        before_K = fresh_K
        for n in range(offsets[m], offsets[m + 1]):
            keep = keep_N[n] if n > offsets[m] else 0.0
            log_b_K = log_emission_RK[row_N[n]]
            a_K = filtered_NK[n]
            highest = -np.inf
            for k in range(K):
                highest = max(highest, log_b_K[k])
            if highest == -np.inf:
                evidence = -np.inf
                break
            total = 0.0
            for k in range(K):
                a_K[k] = np.exp(log_b_K[k] - highest)
            for k in range(K):
                a_K[k] *= keep * before_K[k] + (1.0 - keep) * fresh_K[k]
                total += a_K[k]
            if total == 0.0:
                evidence = -np.inf
                break
            scale = 1.0 / total
            for k in range(K):
                a_K[k] *= scale
            evidence += np.log(total) + highest
            before_K = a_K
        log_evidence_M[m] = evidence


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _smooth(
    keep_N: FloatArray,
    fresh_SK: FloatArray,
    fresh_row_M: IntArray,
    offsets: IntArray,
    filtered_NK: FloatArray,
    switch_N: FloatArray,
    fresh_MK: FloatArray,
) -> None:
    """Turn filtered distributions into smoothed ones, in place; fill the other two outputs."""
    K = filtered_NK.shape[1]
    ratio_K = np.empty(K)
    for m in range(len(offsets) - 1):
        fresh_K, drawn_K = fresh_SK[fresh_row_M[m]], fresh_MK[m]
        for n in range(offsets[m + 1] - 1, offsets[m], -1):
            keep = keep_N[n]
            smoothed_K, before_K = filtered_NK[n], filtered_NK[n - 1]
            drawn = 0.0
            for k in range(K):
                predicted = keep * before_K[k] + (1.0 - keep) * fresh_K[k]
                ratio = smoothed_K[k] / predicted if predicted > 0.0 else 0.0
                ratio_K[k] = ratio
                drawn += fresh_K[k] * ratio
            drawn *= 1.0 - keep
            for k in range(K):
                drawn_K[k] += (1.0 - keep) * fresh_K[k] * ratio_K[k]
                before_K[k] *= keep * ratio_K[k] + drawn
            switch_N[n] = drawn
        first = offsets[m]
        switch_N[first] = 1.0
        for k in range(K):
            drawn_K[k] += filtered_NK[first, k]


@numba.njit(cache=True, error_model="numpy")
def _sample(
    keep_N: FloatArray,
    fresh_SK: FloatArray,
    fresh_row_M: IntArray,
    offsets: IntArray,
    filtered_NK: FloatArray,
    uniform_N2: FloatArray,
) -> tuple[IntArray, BoolArray]:
    """Backward sampling: the last latent from its filtered distribution, each earlier one given the next."""
    K = filtered_NK.shape[1]
    latent_N = np.empty(len(keep_N), dtype=np.int64)
    switch_N = np.ones(len(keep_N), dtype=np.bool_)
    for m in range(len(offsets) - 1):
        fresh_K = fresh_SK[fresh_row_M[m]]
        draw = True
        for n in range(offsets[m + 1] - 1, offsets[m] - 1, -1):
            if draw:  # the next line's latent tells nothing about this one's
                target, k = uniform_N2[n, 0], 0
                reached = filtered_NK[n, 0]
                while reached <= target and k < K - 1:
                    k += 1
                    reached += filtered_NK[n, k]
                while filtered_NK[n, k] == 0.0:  # rounding may end on an impossible latent
                    k -= 1
                latent_N[n] = k
            else:
                latent_N[n] = latent_N[n + 1]
            if n > offsets[m]:
                k = latent_N[n]
                kept = keep_N[n] * filtered_NK[n - 1, k]
                drawn = (1.0 - keep_N[n]) * fresh_K[k]
                switch_N[n] = uniform_N2[n, 1] * (kept + drawn) >= kept
                draw = switch_N[n]
    return latent_N, switch_N


@numba.njit(cache=True, error_model="numpy")
def _viterbi(
    log_emission_RK: FloatArray,
    row_N: IntArray,
    keep_N: FloatArray,
    fresh_SK: FloatArray,
    fresh_row_M: IntArray,
    offsets: IntArray,
) -> tuple[IntArray, BoolArray]:
    K = log_emission_RK.shape[1]
    N = offsets[-1]
    latent_N = np.empty(N, dtype=np.int64)
    switch_N = np.zeros(N, dtype=np.bool_)
    switched_NK = np.zeros((N, K), dtype=np.bool_)
    best_source_N = np.zeros(N, dtype=np.int64)
    score_K = np.empty(K)
    for m in range(len(offsets) - 1):
        start, stop = offsets[m], offsets[m + 1]
        log_fresh_K = np.log(fresh_SK[fresh_row_M[m]])
        for k in range(K):
            score_K[k] = log_fresh_K[k] + log_emission_RK[row_N[start], k]
            switched_NK[start, k] = True
        for n in range(start + 1, stop):
            source = np.argmax(score_K)
            best_source_N[n] = source
            fresh = score_K[source] + np.log(1.0 - keep_N[n])
            log_keep = np.log(keep_N[n])
            for k in range(K):
                kept, drawn = score_K[k] + log_keep, fresh + log_fresh_K[k]
                switched_NK[n, k] = drawn > kept
                score_K[k] = max(kept, drawn) + log_emission_RK[row_N[n], k]
        latent = np.argmax(score_K)
        for n in range(stop - 1, start - 1, -1):
            latent_N[n] = latent
            switch_N[n] = switched_NK[n, latent]
            if switch_N[n] and n > start:
                latent = best_source_N[n]
    return latent_N, switch_N


@numba.njit(cache=True, error_model="numpy")
def _soft_values(
    log_emission_RK: FloatArray,
    row_N: IntArray,
    keep_N: FloatArray,
    fresh_SK: FloatArray,
    fresh_row_M: IntArray,
    offsets: IntArray,
) -> FloatArray:
    K = log_emission_RK.shape[1]
    value_NK = np.empty((offsets[-1], K))
    gain_K = np.empty(K)
    for m in range(len(offsets) - 1):
        fresh_K = fresh_SK[fresh_row_M[m]]
        for n in range(offsets[m + 1] - 1, offsets[m] - 1, -1):
            keep = keep_N[n] if n > offsets[m] else 0.0
            highest = -np.inf
            for k in range(K):
                ahead = value_NK[n + 1, k] if n + 1 < offsets[m + 1] else 0.0
                gain_K[k] = log_emission_RK[row_N[n], k] + ahead
                highest = max(highest, gain_K[k])
            if highest == -np.inf:
                value_NK[n] = -np.inf
                continue
            fresh = 0.0
            for k in range(K):
                gain_K[k] = np.exp(gain_K[k] - highest)
                fresh += fresh_K[k] * gain_K[k]
            for k in range(K):
                value_NK[n, k] = np.log(keep * gain_K[k] + (1.0 - keep) * fresh) + highest
    return value_NK
