"""The E-step as a decision problem: walk through a trace and choose a latent for each line, for a reward in nats.

At line t, after the latent z_{t-1}, choosing z_t earns

    r_t = log p(line_t | z_t) + log p(z_t | z_{t-1}),

so that the rewards of a path sum to its log joint probability with the trace, and a policy q earns the temporal ELBO
when its entropy is added at temperature 1. `TraceInference-v0` steps through this problem; the agents of
`ra3gym.agents.mid_training.inference.posteriors` solve it.

Shape letters: see CONTRIBUTING.md (B lines asked about, D = F + K + 2 numbers of an observation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from ra3gym.abstractions.inference.posterior import FloatArray, IntArray, LatentChain, log_evidence
from ra3gym.errors import DataError
from ra3gym.kernels import njit

Float32Array = npt.NDArray[np.float32]

NO_LATENT = -1
"""The previous latent of a first line."""


@dataclass(frozen=True)
class InferenceProblem:
    """Traces to infer latents over, and what a policy sees of them.

    Attributes:
        chain: emissions and prior.
        feature_NF: float32, features of each line and of the lines around it; they must not depend on latents.
        trace_ids: a different name for each trace.
        line_texts: the N lines as text, or `None`; for display only.

    Raises:
        DataError: features that do not fit the chain or are not finite, or names or texts that do not fit.
    """

    chain: LatentChain
    feature_NF: Float32Array
    trace_ids: tuple[str, ...]
    line_texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        N, M = len(self.chain.row_N), self.chain.num_traces
        if self.feature_NF.ndim != 2 or len(self.feature_NF) != N or self.feature_NF.dtype != np.float32:
            raise DataError(
                f"features of shape {self.feature_NF.shape} and type {self.feature_NF.dtype}: give float32, one row "
                f"for each of the {N} lines"
            )
        if not np.isfinite(self.feature_NF).all():
            raise DataError(
                f"the features of line {int(np.argwhere(~np.isfinite(self.feature_NF))[0, 0])} are not finite"
            )
        if len(self.trace_ids) != M or len(set(self.trace_ids)) != M:
            raise DataError(f"{len(set(self.trace_ids))} different trace ids for {M} traces: give each trace its own")
        if self.line_texts is not None and len(self.line_texts) != N:
            raise DataError(f"{len(self.line_texts)} line texts for {N} lines: give one for each line, or None")

    @property
    def num_latents(self) -> int:
        return self.chain.num_latents

    @property
    def observation_size(self) -> int:
        return int(self.feature_NF.shape[1]) + self.num_latents + 2

    @cached_property
    def trace_N(self) -> IntArray:
        """The trace of each line."""
        return np.repeat(np.arange(self.chain.num_traces), np.diff(self.chain.offsets))

    @cached_property
    def log_evidence_M(self) -> FloatArray:
        """`log p(trace)` of each trace in nats: the most that a policy can earn, entropy included."""
        return log_evidence(self.chain)

    @cached_property
    def known_ND(self) -> Float32Array:
        """Observations without the previous latent: features, K zeros, the line's place in its trace (0 to 1), and
        `1 / lines left`, where the line itself counts."""
        lengths_M = np.diff(self.chain.offsets)
        index_N = np.arange(len(self.chain.row_N)) - self.chain.offsets[self.trace_N]
        left_N = lengths_M[self.trace_N] - index_N
        position_N2 = np.stack([index_N / np.maximum(lengths_M[self.trace_N] - 1, 1), 1.0 / left_N], axis=1)
        blank_NK = np.zeros((len(index_N), self.num_latents))
        return np.concatenate([self.feature_NF, blank_NK, position_N2], axis=1, dtype=np.float32)

    def observations(self, line_B: IntArray, previous_B: IntArray) -> Float32Array:
        """What a policy sees, float32 `(B, D)`: features, the previous latent (one-hot, or zeros), place."""
        observed_BD = self.known_ND[line_B]
        (rows,) = np.nonzero(previous_B >= 0)
        observed_BD[rows, self.feature_NF.shape[1] + previous_B[rows]] = 1.0
        return observed_BD

    def end_observations(self, previous_B: IntArray) -> Float32Array:
        """What a policy sees after the last line, float32 `(B, D)`: no features, the last latent (one-hot, or zeros),
        place (1, 0)."""
        observed_BD = np.zeros((len(previous_B), self.observation_size), dtype=np.float32)
        (rows,) = np.nonzero(previous_B >= 0)
        observed_BD[rows, self.feature_NF.shape[1] + previous_B[rows]] = 1.0
        observed_BD[:, -2] = 1.0
        return observed_BD

    def log_priors(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        """Return `log p(z_t | z_{t-1})` in nats for every z_t, `(B, K)`."""
        chain = self.chain
        return _log_priors(chain.keep_N, chain.fresh_PK, chain.fresh_row_M[self.trace_N[line_B]], line_B, previous_B)

    def rewards(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        """Return `log p(line_t | z_t) + log p(z_t | z_{t-1})` in nats for every z_t, `(B, K)`."""
        return self.chain.log_emission_UK[self.chain.row_N[line_B]] + self.log_priors(line_B, previous_B)

    def rewards_of(self, line_B: IntArray, previous_B: IntArray, latent_B: IntArray) -> FloatArray:
        """Return the reward of one choice in each line, in nats, `(B,)`."""
        chain = self.chain
        return _rewards_of(*chain.arrays[:4], chain.fresh_row_M[self.trace_N[line_B]], line_B, previous_B, latent_B)


@njit(error_model="numpy")
def _rewards_of(
    log_emission_UK: FloatArray,
    row_N: IntArray,
    keep_N: FloatArray,
    fresh_PK: FloatArray,
    fresh_row_B: IntArray,
    line_B: IntArray,
    previous_B: IntArray,
    latent_B: IntArray,
) -> FloatArray:
    reward_B = np.empty(len(line_B))
    for b in range(len(line_B)):
        line, latent = line_B[b], latent_B[b]
        keep = keep_N[line] if previous_B[b] >= 0 else 0.0
        prior = (1.0 - keep) * fresh_PK[fresh_row_B[b], latent] + (keep if latent == previous_B[b] else 0.0)
        reward_B[b] = np.log(prior) + log_emission_UK[row_N[line], latent]
    return reward_B


@njit(error_model="numpy")
def _log_priors(
    keep_N: FloatArray, fresh_PK: FloatArray, fresh_row_B: IntArray, line_B: IntArray, previous_B: IntArray
) -> FloatArray:
    K = fresh_PK.shape[1]
    log_prior_BK = np.empty((len(line_B), K))
    for b in range(len(line_B)):
        previous = previous_B[b]
        keep = keep_N[line_B[b]] if previous >= 0 else 0.0
        for k in range(K):
            log_prior_BK[b, k] = np.log((1.0 - keep) * fresh_PK[fresh_row_B[b], k] + (keep if k == previous else 0.0))
    return log_prior_BK


def lookahead_features(chain: LatentChain, ahead: int = 2) -> Float32Array:
    """Features from the chain itself, enough to act on: float32 `(N, (K + 1) (ahead + 1) + K)`.

    For each line and the `ahead` lines after it: `log p(k | line)` under equal priors, and the line's keep probability.
    Then the trace's log distribution of fresh latents. Every log is raised to at least -20. After the end of a trace,
    features are 0.
    """
    trace_N = np.repeat(np.arange(chain.num_traces), np.diff(chain.offsets))
    log_posterior_UK = log_softmax(np.maximum(chain.log_emission_UK, -1e30), axis=1)
    with np.errstate(divide="ignore"):
        log_fresh_PK = np.log(chain.fresh_PK)
    line_NF = np.concatenate(
        [np.maximum(log_posterior_UK, -20.0)[chain.row_N], chain.keep_N[:, None]], axis=1, dtype=np.float32
    )
    blocks = [line_NF]
    for distance in range(1, ahead + 1):
        following_NF = np.zeros_like(line_NF)
        following_NF[:-distance] = line_NF[distance:] * (trace_N[distance:] == trace_N[:-distance])[:, None]
        blocks.append(following_NF)
    blocks.append(np.maximum(log_fresh_PK, -20.0)[chain.fresh_row_M[trace_N]])
    return np.concatenate(blocks, axis=1, dtype=np.float32)


def problem_from_chain(
    chain: LatentChain, trace_ids: Sequence[str] | None = None, feature_NF: Float32Array | None = None
) -> InferenceProblem:
    """Make the problem of a chain; by default, traces are named "0", "1", ... and features are `lookahead_features`."""
    return InferenceProblem(
        chain,
        lookahead_features(chain) if feature_NF is None else feature_NF,
        tuple(map(str, range(chain.num_traces))) if trace_ids is None else tuple(trace_ids),
    )
