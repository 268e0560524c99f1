"""The compiled loops of `posterior`: forward-backward, sampling, Viterbi and soft values, a range of traces per call.

The work on one line is in functions of their own, `_filter_line` and `_smooth_line`: for 1-D arrays that are arguments
the compiler makes vector instructions, for the same code inside the loop over lines often not. Three more things make
them fast. The exponential is a polynomial, which vectorizes (the C library's does not), in one loop over all lines
of a trace, so that few latents do not waste it. Filtered distributions stay unnormalized, with their scale beside them,
which saves a pass. And the smoothed distribution is the filtered one times

    beta_t(k) = p(lines after t | z_t = k) / p(lines after t | lines up to t),   beta_{t-1}(k) = keep_t q_t(k) + d_t,
    q_t(k) = b_t(k) beta_t(k) / c_t,   d_t = (1 - keep_t) sum_j fresh(j) q_t(j),

with b_t the emission and c_t the normalizer, so nothing is divided. d_t is the probability of a fresh draw at line t.

Sums may be reassociated (`fastmath` of `_SUMS`), but nothing assumes finite values: emissions may be `-inf`. All are in
one file because numba's cache looks for changes in a function's own file only.

Shape letters: see CONTRIBUTING.md (U distinct lines, P distributions of fresh latents, T lines of a trace).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import extending, types

from ra3gym.kernels import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NEGLIGIBLE = 1e-290
"""A latent counts as impossible unless its joint with the line is above this, in units of the line's best emission.

So the factors of the backward pass stay below `1 / NEGLIGIBLE`."""

_SUMS = {"reassoc", "contract", "nsz"}


class ChainArrays(NamedTuple):
    """What the kernels read: the arrays of a `LatentChain`, with the emissions as they are or exponentiated.

    Attributes:
        emission_UK: `log p(line | latent)`; if `exponentiated`, `p(line | latent)` over the highest of its row.
        highest_U: if `exponentiated`, the logarithm of each row's highest; else empty.
    """

    emission_UK: FloatArray
    highest_U: FloatArray
    exponentiated: bool
    row_N: IntArray
    keep_N: FloatArray
    fresh_PK: FloatArray
    fresh_row_M: IntArray
    offsets: IntArray


# --- exp --------------------------------------------------------------------------------------------------------------

# exp(x) = 2^n exp(r) with |r| <= log(2) / 2, where Taylor's series to r^13 is exact to 4e-18. Adding 1.5 * 2^52 rounds
# n and leaves it in the low bits. log 2 has two parts (Cody and Waite 1980), the first with zeros: n * _LOG_2 is exact.
_ROUND = 1.5 * 2.0**52
_LOG_2, _LOG_2_REST = 0.693147180369123816490, 1.90821492927058770002e-10
_LOG_2_E = 1.0 / math.log(2.0)
_C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9, _C10, _C11, _C12, _C13 = (1.0 / math.factorial(n) for n in range(2, 14))
_LOWEST = -708.0
"""Below this, exp(x) is no normal number any more and is taken as 0."""


@extending.intrinsic
def _bits_of(typing_context: Any, number: Any) -> Any:
    """Return the int64 with the bits of a float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


@extending.intrinsic
def _float_of(typing_context: Any, bits: Any) -> Any:
    """Return the float64 with the bits of an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def exp_in_place(values: FloatArray) -> None:
    """Exponentiate numbers that are at most 0 (or `-inf`), to 1 unit in the last place; 0 below -708."""
    for i in range(len(values)):
        x = values[i]
        rounded = x * _LOG_2_E + _ROUND
        n = rounded - _ROUND
        r = (x - n * _LOG_2) - n * _LOG_2_REST
        high = (((((_C13 * r + _C12) * r + _C11) * r + _C10) * r + _C9) * r + _C8) * r + _C7
        series = ((((((high * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + 1.0) * r + 1.0
        # The ignore: numba itself passes an intrinsic its first argument.
        power: float = _float_of((_bits_of(rounded) + 1023) << 52)  # type: ignore[call-arg]
        values[i] = series * power if x >= _LOWEST else 0.0


@njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc"})
def _highest(row_K: FloatArray) -> float:
    highest = -np.inf
    for k in range(len(row_K)):
        highest = max(highest, row_K[k])
    return highest


@njit(nogil=True, error_model="numpy")
def _relative(log_K: FloatArray, out_K: FloatArray) -> float:
    """Fill `out_K` with the differences to the highest, which is returned; do not read `out_K` where that is `-inf`."""
    highest = _highest(log_K)
    for k in range(len(log_K)):
        out_K[k] = log_K[k] - highest
    return highest


@njit(nogil=True, error_model="numpy")
def exponentiate(log_UK: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return `(exp(log_UK - highest), highest_U)` for `ChainArrays`; this pays when several lines share a row."""
    table_UK = np.empty_like(log_UK)
    highest_U = np.empty(len(log_UK))
    for r in range(len(log_UK)):
        highest_U[r] = _relative(log_UK[r], table_UK[r])
        exp_in_place(table_UK[r])
    return table_UK, highest_U


# --- forward ----------------------------------------------------------------------------------------------------------


@njit(nogil=True, error_model="numpy")
def _load_emissions(chain: ChainArrays, m: int, emission_TK: FloatArray) -> float:
    """Fill a trace's emissions, each over its line's highest; return the sum of their logs (-inf: impossible)."""
    emission_UK, highest_U, exponentiated, row_N = chain[:4]  # names are quicker than fields within loops
    start, stop = chain.offsets[m], chain.offsets[m + 1]
    total = 0.0
    for n in range(start, stop):
        row = row_N[n]
        if exponentiated:
            highest = highest_U[row]
            emission_TK[n - start] = emission_UK[row]
        else:
            highest = _relative(emission_UK[row], emission_TK[n - start])
        if highest == -np.inf:
            return -np.inf
        total += highest
    if not exponentiated:
        exp_in_place(emission_TK[: stop - start].reshape(-1))
    return total


@njit(nogil=True, error_model="numpy", fastmath=_SUMS)
def _filter_line(
    carried: float, before_K: FloatArray, fresh: float, fresh_K: FloatArray, emission_K: FloatArray, out_K: FloatArray
) -> float:
    """Fill `out_K` with the joint of latent and line given the previous lines; return its sum."""
    total = 0.0
    for k in range(len(out_K)):
        joint = emission_K[k] * (carried * before_K[k] + fresh * fresh_K[k])
        joint = joint if joint > NEGLIGIBLE else 0.0
        out_K[k] = joint
        total += joint
    return total


@njit(nogil=True, error_model="numpy")
def _filter_trace(
    chain: ChainArrays, m: int, emission_TK: FloatArray, joint_TK: FloatArray, scale_T: FloatArray
) -> float:
    """Run the forward pass over a trace; return its log evidence.

    Fills the arrays, valid unless the evidence is `-inf`: `joint_TK[t] * scale_T[t]` is the filtered distribution.
    """
    start, keep_N = chain.offsets[m], chain.keep_N
    fresh_K = chain.fresh_PK[chain.fresh_row_M[m]]
    evidence: float = _load_emissions(chain, m, emission_TK)
    if evidence == -np.inf:
        return evidence
    before_K, scale = fresh_K, 0.0
    likelihood = 1.0
    for t in range(chain.offsets[m + 1] - start):
        keep = keep_N[start + t] if t > 0 else 0.0
        total = _filter_line(keep * scale, before_K, 1.0 - keep, fresh_K, emission_TK[t], joint_TK[t])
        if total == 0.0:
            return -np.inf
        scale = 1.0 / total
        scale_T[t] = scale
        before_K = joint_TK[t]
        likelihood *= total
        if likelihood < 1e-10:  # one logarithm for several lines; total > NEGLIGIBLE, so the product is a normal number
            evidence += np.log(likelihood)
            likelihood = 1.0
    return evidence + float(np.log(likelihood))


@njit(nogil=True, error_model="numpy")
def _longest(offsets: IntArray, first: int, last: int) -> int:
    longest = 0
    for m in range(first, last):
        longest = max(longest, offsets[m + 1] - offsets[m])
    return longest


@njit(nogil=True, error_model="numpy")
def forward(chain: ChainArrays, first: int, last: int, log_evidence_M: FloatArray) -> None:
    """Fill the log evidence of the traces `first` to `last - 1`; `forward_backward` takes a range likewise."""
    T, K = _longest(chain.offsets, first, last), chain.emission_UK.shape[1]
    emission_TK, joint_TK, scale_T = np.empty((T, K)), np.empty((T, K)), np.empty(T)
    for m in range(first, last):
        log_evidence_M[m] = _filter_trace(chain, m, emission_TK, joint_TK, scale_T)


# --- forward-backward -------------------------------------------------------------------------------------------------


@njit(nogil=True, error_model="numpy", fastmath=_SUMS)
def _smooth_line(
    keep: float,
    drawn: float,
    scale: float,
    fresh_K: FloatArray,
    emission_K: FloatArray,
    marginal_K: FloatArray,
    ratio_K: FloatArray,
    drawn_K: FloatArray,
) -> float:
    """Step back to a line, from `keep`, `drawn` and `ratio_K`: keep, d and q of the next line (see the module's top).

    Turns the line's joint into its marginal and `ratio_K` into its own q; returns the mean of q over fresh latents.
    """
    mean = 0.0
    for k in range(len(marginal_K)):
        drawn_K[k] += (1.0 - keep) * ratio_K[k]
        joint = marginal_K[k]
        beta = scale * (keep * ratio_K[k] + drawn) if joint > 0.0 else 0.0  # where the joint is 0, beta could overflow
        marginal_K[k] = joint * beta
        ratio = emission_K[k] * beta
        ratio_K[k] = ratio
        mean += fresh_K[k] * ratio
    return mean


@njit(nogil=True, error_model="numpy")
def forward_backward(
    chain: ChainArrays,
    first: int,
    last: int,
    marginal_NK: FloatArray,
    log_evidence_M: FloatArray,
    switch_N: FloatArray,
    fresh_MK: FloatArray,
) -> None:
    """Fill the arrays of a `Posterior`; for an impossible trace, only its evidence."""
    T, K = _longest(chain.offsets, first, last), chain.emission_UK.shape[1]
    emission_TK, scale_T = np.empty((T, K)), np.empty(T)
    ratio_K, drawn_K = np.empty(K), np.empty(K)
    keep_N = chain.keep_N
    for m in range(first, last):
        start, stop = chain.offsets[m], chain.offsets[m + 1]
        marginal_TK = marginal_NK[start:stop]
        log_evidence_M[m] = _filter_trace(chain, m, emission_TK, marginal_TK, scale_T)
        if log_evidence_M[m] == -np.inf:
            continue
        fresh_K = chain.fresh_PK[chain.fresh_row_M[m]]
        ratio_K[:] = 0.0
        drawn_K[:] = 0.0
        keep, drawn = 1.0, 1.0  # no line follows the last one: beta = 1
        for t in range(stop - start - 1, -1, -1):
            mean = _smooth_line(keep, drawn, scale_T[t], fresh_K, emission_TK[t], marginal_TK[t], ratio_K, drawn_K)
            keep = keep_N[start + t]
            drawn = (1.0 - keep) * mean
            switch_N[start + t] = drawn
        switch_N[start] = 1.0
        for k in range(K):
            fresh_MK[m, k] = drawn_K[k] * fresh_K[k] + marginal_TK[0, k]


# --- sampling, Viterbi, soft values -----------------------------------------------------------------------------------


@njit(nogil=True, error_model="numpy")
def sample(
    chain: ChainArrays, uniform_N2: FloatArray, log_evidence_M: FloatArray, latent_N: IntArray, switch_N: BoolArray
) -> None:
    """Backward sampling: the last latent from its filtered distribution, each earlier one given the next."""
    M, K = len(chain.offsets) - 1, chain.emission_UK.shape[1]
    T = _longest(chain.offsets, 0, M)
    emission_TK, joint_TK, scale_T = np.empty((T, K)), np.empty((T, K)), np.empty(T)
    for m in range(M):
        log_evidence_M[m] = _filter_trace(chain, m, emission_TK, joint_TK, scale_T)
        if log_evidence_M[m] == -np.inf:
            continue
        start = chain.offsets[m]
        fresh_K = chain.fresh_PK[chain.fresh_row_M[m]]
        switch_N[start] = True
        draw = True
        for n in range(chain.offsets[m + 1] - 1, start - 1, -1):
            t = n - start
            if draw:  # the next line drew a fresh latent, which is independent of this line's
                target, k = uniform_N2[n, 0] / scale_T[t], 0
                reached = joint_TK[t, 0]
                while reached <= target and k < K - 1:
                    k += 1
                    reached += joint_TK[t, k]
                while joint_TK[t, k] == 0.0:  # rounding may end on an impossible latent
                    k -= 1
                latent_N[n] = k
            else:
                latent_N[n] = latent_N[n + 1]
            if t > 0:
                k = latent_N[n]
                kept = chain.keep_N[n] * joint_TK[t - 1, k] * scale_T[t - 1]
                drawn = (1.0 - chain.keep_N[n]) * fresh_K[k]
                switch_N[n] = uniform_N2[n, 1] * (kept + drawn) >= kept
                draw = switch_N[n]


@njit(nogil=True, error_model="numpy")
def viterbi(
    log_emission_UK: FloatArray,
    row_N: IntArray,
    keep_N: FloatArray,
    fresh_PK: FloatArray,
    fresh_row_M: IntArray,
    offsets: IntArray,
) -> tuple[FloatArray, IntArray, BoolArray]:
    """Return `(log_joint_M, latent_N, switch_N)` of the best paths; see `posterior.viterbi_paths`."""
    K = log_emission_UK.shape[1]
    N = offsets[-1]
    log_joint_M = np.empty(len(offsets) - 1)
    latent_N = np.empty(N, dtype=np.int64)
    switch_N = np.zeros(N, dtype=np.bool_)
    switched_NK = np.zeros((N, K), dtype=np.bool_)
    best_source_N = np.zeros(N, dtype=np.int64)
    score_K = np.empty(K)
    for m in range(len(offsets) - 1):
        start, stop = offsets[m], offsets[m + 1]
        log_fresh_K = np.log(fresh_PK[fresh_row_M[m]])
        for k in range(K):
            score_K[k] = log_fresh_K[k] + log_emission_UK[row_N[start], k]
            switched_NK[start, k] = True
        for n in range(start + 1, stop):
            source = np.argmax(score_K)
            best_source_N[n] = source
            fresh = score_K[source] + np.log(1.0 - keep_N[n])
            log_keep = np.log(keep_N[n])
            for k in range(K):
                kept, drawn = score_K[k] + log_keep, fresh + log_fresh_K[k]
                switched_NK[n, k] = drawn > kept
                score_K[k] = max(kept, drawn) + log_emission_UK[row_N[n], k]
        latent = np.argmax(score_K)
        log_joint_M[m] = score_K[latent]
        for n in range(stop - 1, start - 1, -1):
            latent_N[n] = latent
            switch_N[n] = switched_NK[n, latent]
            if switch_N[n] and n > start:
                latent = best_source_N[n]
    return log_joint_M, latent_N, switch_N


@njit(nogil=True, error_model="numpy")
def soft_values(
    log_emission_UK: FloatArray,
    row_N: IntArray,
    keep_N: FloatArray,
    fresh_PK: FloatArray,
    fresh_row_M: IntArray,
    offsets: IntArray,
) -> FloatArray:
    """Return `V_t(k)`; see `posterior.soft_values`."""
    K = log_emission_UK.shape[1]
    value_NK = np.empty((offsets[-1], K))
    gain_K = np.empty(K)
    for m in range(len(offsets) - 1):
        fresh_K = fresh_PK[fresh_row_M[m]]
        for n in range(offsets[m + 1] - 1, offsets[m] - 1, -1):
            keep = keep_N[n] if n > offsets[m] else 0.0
            for k in range(K):
                rest = value_NK[n + 1, k] if n + 1 < offsets[m + 1] else 0.0
                gain_K[k] = log_emission_UK[row_N[n], k] + rest
            highest = _relative(gain_K, gain_K)
            if highest == -np.inf:
                value_NK[n] = -np.inf
                continue
            exp_in_place(gain_K)
            fresh = 0.0
            for k in range(K):
                fresh += fresh_K[k] * gain_K[k]
            for k in range(K):
                value_NK[n, k] = np.log(keep * gain_K[k] + (1.0 - keep) * fresh) + highest
    return value_NK
