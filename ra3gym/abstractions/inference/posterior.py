"""Exact inference over latents under a sticky prior: ragged batches of traces, O(lines x latents), float64.

The latents of a trace follow `p(z_1) = fresh(z_1)` and, for t > 1,

    p(z_t | z_{t-1}) = keep_t [z_t = z_{t-1}] + (1 - keep_t) fresh(z_t),

the sticky prior of RA3 (arXiv 2509.25810) with a stickiness `keep_t` for each line and a distribution of fresh latents
for each trace. `StickyPrior` is the special case of one stickiness and uniform fresh latents. Line t is emitted with
`p(line_t | z_t)`. A switch does not depend on the previous latent, so no K x K matrix is needed. Forward, with a_t the
filtered distribution, r_t the predicted one and c_t the normalizer,

    r_t(k) = keep_t a_{t-1}(k) + (1 - keep_t) fresh(k),   a_t(k) = r_t(k) b_t(k) / c_t,   log evidence = sum_t log c_t,

and backward, with g_t the smoothed distribution, which needs no emission again:

    g_{t-1}(k) = a_{t-1}(k) (keep_t g_t(k) / r_t(k) + (1 - keep_t) sum_j fresh(j) g_t(j) / r_t(j)).

As control: choosing latents with reward `log p(line_t | z_t) + log p(z_t | z_{t-1})` at temperature 1 is
maximum-entropy RL. The soft-optimal value is the log evidence of the remaining lines (`soft_values`), and the
soft-optimal policy is the posterior (`soft_policy`).

Shape letters: see CONTRIBUTING.md (U distinct lines: the rows of emissions, P distributions of fresh latents). The
lines of trace m are `offsets[m]:offsets[m + 1]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.inference import posterior_kernels as kernels
from ra3gym.abstractions.inference.posterior_kernels import BoolArray, ChainArrays, FloatArray, IntArray
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.errors import ConfigError, DataError

__all__ = [
    "BoolArray",
    "FloatArray",
    "Infer",
    "IntArray",
    "LatentChain",
    "Posterior",
    "log_evidence",
    "posterior",
    "sample_paths",
    "soft_policy",
    "soft_values",
    "viterbi_paths",
]

_TYPES = {
    "log_emission_UK": np.float64,
    "row_N": np.int64,
    "keep_N": np.float64,
    "fresh_PK": np.float64,
    "fresh_row_M": np.int64,
    "offsets": np.int64,
}
"""Other types and layouts are copied into these, contiguous, so that one compilation serves all chains."""


@dataclass(frozen=True)
class LatentChain:
    """A batch of traces, with all that the posterior over their latents depends on.

    Arrays of other types than float64 and int64 are copied into these. Inference is exact to rounding wherever each
    latent may be drawn afresh. Where that is impossible (a `keep_N` of 1, or 0 in `fresh_PK`), a latent more than about
    660 nats below the others counts as impossible from there on.

    Attributes:
        log_emission_UK: rows of `log p(line | latent)`, in nats; may hold `-inf`, but no NaN.
        row_N: the row of each line; equal lines may share one.
        keep_N: the probability that a line keeps its latent without a fresh draw; ignored at first lines.
        fresh_PK: distributions of fresh latents.
        fresh_row_M: the distribution of each trace, a row of `fresh_PK`.
        offsets: M + 1 ints, where traces begin and the last one ends.

    Raises:
        DataError: shapes that do not fit, indices out of range, NaN, no traces or an empty one, or values that are no
            probabilities.
    """

    log_emission_UK: FloatArray
    row_N: IntArray
    keep_N: FloatArray
    fresh_PK: FloatArray
    fresh_row_M: IntArray
    offsets: IntArray

    def __post_init__(self) -> None:
        for name, dtype in _TYPES.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=dtype))
        if self.log_emission_UK.ndim != 2 or self.log_emission_UK.shape[1] < 2:
            raise DataError(
                f"emissions of shape {self.log_emission_UK.shape}: give (lines, latents), at least 2 latents"
            )
        if self.offsets.ndim != 1 or len(self.offsets) < 2 or (np.diff(self.offsets) < 1).any():
            raise DataError("there is no trace, or a trace without lines: drop it before inference")
        self._check_shapes()
        # One pass without a copy: with a NaN among the values, the maximum is NaN.
        if not self.log_emission_UK.max() < np.inf:
            row = int(np.flatnonzero(~(self.log_emission_UK < np.inf).all(axis=1))[0])
            raise DataError(f"row {row} of the emissions holds NaN or +inf: they must be log-probabilities")
        if not ((self.keep_N >= 0.0) & (self.keep_N <= 1.0)).all():
            raise DataError("keep_N holds values that are no probabilities")
        if not ((self.fresh_PK >= 0.0).all() and np.allclose(self.fresh_PK.sum(axis=1), 1.0, rtol=0.0, atol=1e-6)):
            raise DataError("each row of fresh_PK must be a distribution over latents")

    def _check_shapes(self) -> None:
        N, M, (U, K) = len(self.row_N), self.num_traces, self.log_emission_UK.shape
        if self.offsets[0] != 0 or self.offsets[-1] != N:
            raise DataError(f"offsets run from {self.offsets[0]} to {self.offsets[-1]}: row_N has lines 0 to {N}")
        for name, shape in {"row_N": (N,), "keep_N": (N,), "fresh_row_M": (M,)}.items():
            if getattr(self, name).shape != shape:
                raise DataError(f"{name} has shape {getattr(self, name).shape}: the chain needs {shape}")
        if self.fresh_PK.ndim != 2 or self.fresh_PK.shape[1] != K:
            raise DataError(f"fresh_PK has shape {self.fresh_PK.shape}: the chain needs (distributions, {K})")
        for name, count in {"row_N": U, "fresh_row_M": len(self.fresh_PK)}.items():
            lowest, highest = getattr(self, name).min(), getattr(self, name).max()
            if lowest < 0 or highest >= count:
                raise DataError(f"{name} holds {lowest if lowest < 0 else highest}: there are rows 0 to {count - 1}")

    @classmethod
    def under(cls, prior: StickyPrior, log_emissions: Sequence[npt.ArrayLike]) -> LatentChain:
        """Make the chain of traces under one sticky prior, from one `(T, K)` array of log emissions for each trace.

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
            log_emission_UK=np.concatenate(arrays) if arrays else np.zeros((0, K)),
            row_N=np.arange(num_lines),
            keep_N=np.full(num_lines, prior.alpha),
            fresh_PK=np.full((1, K), 1.0 / K),
            fresh_row_M=np.zeros(len(arrays), dtype=np.int64),
            offsets=np.cumsum([0, *map(len, arrays)]),
        )

    @property
    def num_traces(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_latents(self) -> int:
        return int(self.log_emission_UK.shape[1])

    @property
    def arrays(self) -> tuple[FloatArray, IntArray, FloatArray, FloatArray, IntArray, IntArray]:
        """The six arrays, in the order of the fields."""
        return self.log_emission_UK, self.row_N, self.keep_N, self.fresh_PK, self.fresh_row_M, self.offsets

    @property
    def _kernel_arrays(self) -> ChainArrays:
        """What the kernels read; rows that several lines share are exponentiated here, once."""
        if len(self.log_emission_UK) < len(self.row_N):
            table_UK, highest_U = kernels.exponentiate(self.log_emission_UK)
            return ChainArrays(table_UK, highest_U, True, *self.arrays[1:])
        return ChainArrays(self.log_emission_UK, np.empty(0), False, *self.arrays[1:])


@dataclass(frozen=True)
class Posterior:
    """The result of forward-backward.

    Attributes:
        log_evidence_M: `log p(trace)` in nats.
        marginal_NK: `p(z_t = k | trace)`.
        switch_N: the probability that the line starts a segment, that is, that its latent was drawn afresh; 1 at first
            lines.
        fresh_MK: the expected number of fresh draws of each latent in each trace.
    """

    log_evidence_M: FloatArray
    marginal_NK: FloatArray
    switch_N: FloatArray
    fresh_MK: FloatArray


Infer = Callable[[LatentChain], Posterior]
"""An E-step inside EM: returns expected counts under a posterior, and its evidence or a bound on it."""


def posterior(chain: LatentChain, *, out: FloatArray | None = None, threads: int = 1) -> Posterior:
    """Run forward-backward.

    Args:
        chain: the traces.
        out: float64, contiguous, `(N, K)`: filled with the marginals, it becomes `marginal_NK`. Large batches take less
            time in memory that is used again (`benchmarks/posterior.py` measures how much).
        threads: how many threads share the traces; the result is the same, bit for bit.

    Raises:
        DataError: a trace is impossible under every path.
        ConfigError: an `out` of another type or shape, or less than one thread.
    """
    N, M, K = len(chain.row_N), chain.num_traces, chain.num_latents
    if out is not None and not (out.shape == (N, K) and out.dtype == np.float64 and out.flags.carray):
        raise ConfigError(f"out is {out.dtype} of shape {out.shape}: give contiguous float64 of shape {(N, K)}")
    result = Posterior(np.empty(M), np.empty((N, K)) if out is None else out, np.empty(N), np.empty((M, K)))
    arrays = chain._kernel_arrays
    filled = result.marginal_NK, result.log_evidence_M, result.switch_N, result.fresh_MK
    _share_out(lambda first, last: kernels.forward_backward(arrays, first, last, *filled), chain, threads)
    _refuse_impossible(result.log_evidence_M)
    return result


def log_evidence(chain: LatentChain, *, threads: int = 1) -> FloatArray:
    """Return `log p(trace)` in nats, `(M,)`; `-inf` where a trace is impossible. `threads`: see `posterior`."""
    log_evidence_M = np.empty(chain.num_traces)
    arrays = chain._kernel_arrays
    _share_out(lambda first, last: kernels.forward(arrays, first, last, log_evidence_M), chain, threads)
    return log_evidence_M


def sample_paths(chain: LatentChain, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
    """Sample one path per trace from the posterior: `(latent_N, switch_N)`; raises `DataError` as `posterior` does."""
    N = len(chain.row_N)
    log_evidence_M, latent_N, switch_N = np.empty(chain.num_traces), np.empty(N, np.int64), np.empty(N, np.bool_)
    kernels.sample(chain._kernel_arrays, rng.random((N, 2)), log_evidence_M, latent_N, switch_N)
    _refuse_impossible(log_evidence_M)
    return latent_N, switch_N


def viterbi_paths(chain: LatentChain) -> tuple[IntArray, BoolArray]:
    """Return the most probable path of each trace: `(latent_N, switch_N)`.

    Keeping a latent and drawing the same one afresh are different events; `switch_N` says which of them a path has.

    Raises:
        DataError: a trace is impossible under every path.
    """
    log_joint_M, latent_N, switch_N = kernels.viterbi(*chain.arrays)
    _refuse_impossible(log_joint_M)
    return latent_N, switch_N


def soft_values(chain: LatentChain) -> FloatArray:
    """Return `V_t(k) = log p(line_t, ... | z_{t-1} = k)` in nats, `(N, K)`; at first lines, the same for every k.

    With lines as steps and `log p(line | z) + log p(z | previous)` as reward, this is the soft-optimal value before the
    choice of z_t. At a first line it is the trace's log evidence.
    """
    return kernels.soft_values(*chain.arrays)


def soft_policy(chain: LatentChain, values_NK: FloatArray) -> FloatArray:
    """Return the soft-optimal policy `p(z_t = k | z_{t-1} = j, lines)`, which is the posterior: `(N, K previous, K)`.

    It is `exp(log p(line_t | k) + log p(k | j) + V_{t+1}(k) - V_t(j))`. Its size of N K^2 makes it a tool for analysis.
    """
    K = chain.num_latents
    last_N = np.zeros(len(chain.row_N), dtype=bool)
    last_N[chain.offsets[1:] - 1] = True
    first_N = np.zeros_like(last_N)
    first_N[chain.offsets[:-1]] = True
    next_NK = np.where(last_N[:, None], 0.0, np.roll(values_NK, -1, axis=0))
    trace_N = np.repeat(np.arange(chain.num_traces), np.diff(chain.offsets))
    fresh_NK = chain.fresh_PK[chain.fresh_row_M[trace_N]]
    keep_N = np.where(first_N, 0.0, chain.keep_N)
    prior_NKK = keep_N[:, None, None] * np.eye(K) + (1 - keep_N)[:, None, None] * fresh_NK[:, None, :]
    gain_NK = chain.log_emission_UK[chain.row_N] + next_NK
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(prior_NKK) + gain_NK[:, None, :] - values_NK[:, :, None]))


def _refuse_impossible(log_evidence_M: FloatArray) -> None:
    impossible = np.flatnonzero(np.isneginf(log_evidence_M))
    if len(impossible):
        raise DataError(f"trace {int(impossible[0])} has probability 0 under every path: no posterior exists")


def _share_out(infer: Callable[[int, int], None], chain: LatentChain, threads: int) -> None:
    """Call `infer(first, last)` for ranges of traces that hold about as many lines each, one per thread."""
    if threads < 1:
        raise ConfigError(f"threads={threads}: give at least 1")
    if threads == 1:
        infer(0, chain.num_traces)
        return
    cuts = np.searchsorted(chain.offsets, np.linspace(0, chain.offsets[-1], threads + 1))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda cut: infer(*cut), pairwise(cuts.tolist())))
