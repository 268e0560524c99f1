"""Posteriors over latents, the agents that find them, and their distance from the exact posterior.

An inference agent is any object with `fit(problem, rng, start=None) -> PathPosterior`; a path posterior is any object
with `log_probs(line_B, previous_B)`. The exact posterior and the Viterbi path are two of them; other agents learn
their posterior from rewards.

Shape letters: see CONTRIBUTING.md (N lines, B lines of this call, M traces, K latents).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ra3gym.abstractions.inference.posterior import FloatArray, IntArray, soft_values, viterbi_paths
from ra3gym.abstractions.inference.problem import NO_LATENT, Float32Array, InferenceProblem


class PathPosterior(Protocol):
    """A distribution over the latents of a problem's traces, line by line: `q(z_t | z_{t-1}, trace)`."""

    def log_probs(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        """Return `log q` in nats, shape (B, K), of lines (indices into the problem's N) given their previous latents.

        `previous_B` is `NO_LATENT` at first lines. A deterministic posterior has zeros and `-inf`.
        """
        ...


class InferenceAgent(Protocol):
    """Finds a posterior over latents with emissions and prior fixed."""

    def fit(
        self, problem: InferenceProblem, rng: np.random.Generator, start: PathPosterior | None = None
    ) -> PathPosterior:
        """Return a posterior; the same arguments and `rng` state give the same one.

        `start` is a posterior of a similar problem to continue from; an agent may ignore it.
        """
        ...


@dataclass(frozen=True)
class ObservationPosterior:
    """A posterior that reads observations: `policy` maps float32 (B, D) to log-probabilities (B, K)."""

    problem: InferenceProblem
    policy: Callable[[Float32Array], FloatArray]

    def log_probs(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        """See `PathPosterior`."""
        return self.policy(self.problem.observations(line_B, previous_B))


class ExactAgent:
    """The exact posterior, from soft values."""

    def fit(
        self, problem: InferenceProblem, rng: np.random.Generator, start: PathPosterior | None = None
    ) -> PathPosterior:
        """See `InferenceAgent`; only the problem is read."""
        return _ExactPosterior(problem, soft_values(problem.chain))


@dataclass(frozen=True)
class _ExactPosterior:
    problem: InferenceProblem
    value_NK: FloatArray

    def log_probs(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        last_B = np.isin(line_B + 1, self.problem.chain.offsets)
        ahead_BK = np.where(last_B[:, None], 0.0, self.value_NK[np.where(last_B, line_B, line_B + 1)])
        value_B = self.value_NK[line_B, np.maximum(previous_B, 0)]
        return np.asarray(self.problem.rewards(line_B, previous_B) + ahead_BK - value_B[:, None])


class ViterbiAgent:
    """The most probable path, with certainty."""

    def fit(
        self, problem: InferenceProblem, rng: np.random.Generator, start: PathPosterior | None = None
    ) -> PathPosterior:
        """See `InferenceAgent`; only the problem is read."""
        return CertainPosterior(viterbi_paths(problem.chain)[0], problem.num_latents)


@dataclass(frozen=True)
class CertainPosterior:
    """A posterior with all its mass on one path, `latent_N`."""

    latent_N: IntArray
    num_latents: int

    def log_probs(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        """See `PathPosterior`."""
        chosen_BK = np.arange(self.num_latents) == self.latent_N[line_B][:, None]
        return np.where(chosen_BK, 0.0, -np.inf)


class UniformPosterior:
    """A posterior under which all latents are equally likely: the reference that gaps are compared with."""

    def __init__(self, num_latents: int) -> None:
        self.num_latents = num_latents

    def log_probs(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        """See `PathPosterior`."""
        return np.full((len(line_B), self.num_latents), -np.log(self.num_latents))


@dataclass(frozen=True)
class SampledPaths:
    """One path per trace, drawn from a posterior q.

    Attributes:
        latent_N: the latents.
        log_joint_M: `log p(trace, path)` in nats.
        log_q_M: `log q(path | trace)` in nats.
    """

    latent_N: IntArray
    log_joint_M: FloatArray
    log_q_M: FloatArray

    @property
    def elbo_M(self) -> FloatArray:
        """`log p(trace, path) - log q(path | trace)`, in nats: an unbiased estimate of each trace's temporal ELBO.

        At the exact posterior it has no variance: it is the log evidence on every path.
        """
        return self.log_joint_M - self.log_q_M


def sample_paths(
    problem: InferenceProblem, posterior: PathPosterior, rng: np.random.Generator, *, greedy: bool = False
) -> SampledPaths:
    """Draw one path per trace; `greedy` takes the likeliest latent of every line instead of a sample."""
    offsets = problem.chain.offsets
    latent_N = np.empty(offsets[-1], dtype=np.int64)
    log_joint_M, log_q_M = np.zeros(len(offsets) - 1), np.zeros(len(offsets) - 1)
    for step in _walk(problem, posterior, rng, greedy=greedy):
        latent_N[step.line_B] = step.chosen_B
        log_q_M[step.trace_B] += step.log_q_BK[np.arange(len(step.trace_B)), step.chosen_B]
        log_joint_M[step.trace_B] += problem.rewards_of(step.line_B, step.previous_B, step.chosen_B)
    return SampledPaths(latent_N, log_joint_M, log_q_M)


class _Step(NamedTuple):
    """One line of each of the B traces that reach so far."""

    trace_B: IntArray
    line_B: IntArray
    previous_B: IntArray
    log_q_BK: FloatArray
    chosen_B: IntArray


def _walk(
    problem: InferenceProblem, posterior: PathPosterior, rng: np.random.Generator, *, greedy: bool = False
) -> Iterator[_Step]:
    """Walk through all traces at once, one line at a time."""
    offsets = problem.chain.offsets
    length_M = np.diff(offsets)
    previous_M = np.full(len(length_M), NO_LATENT)
    for t in range(int(length_M.max())):
        (trace_B,) = np.nonzero(length_M > t)
        line_B, previous_B = offsets[trace_B] + t, previous_M[trace_B]
        log_q_BK = posterior.log_probs(line_B, previous_B)
        chosen_B = log_q_BK.argmax(axis=1) if greedy else _draw(log_q_BK, rng)
        yield _Step(trace_B, line_B, previous_B, log_q_BK, chosen_B)
        previous_M[trace_B] = chosen_B


def _draw(log_q_BK: FloatArray, rng: np.random.Generator) -> IntArray:
    """Draw one latent per row by inverting the cumulative distribution; never one of probability 0."""
    reached_BK = np.exp(log_q_BK).cumsum(axis=1)
    # A uniform number in (0, 1]: the first latent to reach it has mass of its own.
    target_B = (1.0 - rng.random(len(log_q_BK))) * reached_BK[:, -1]
    return np.asarray((reached_BK < target_B[:, None]).sum(axis=1))


def elbo_gap(
    problem: InferenceProblem, posterior: PathPosterior, rng: np.random.Generator, *, samples: int = 4
) -> float:
    """Return `log evidence - ELBO` in nats per line: how far `posterior` is from the exact one; 0 if they agree.

    By the chain rule it is the sum over lines of `KL(q(z | previous) || p(z | previous, trace))` along paths of q, here
    estimated from `samples` paths per trace. Every term is exact and none is negative, so a small gap is not noise.
    """
    exact = _ExactPosterior(problem, soft_values(problem.chain))
    gap = 0.0
    for _ in range(samples):
        for step in _walk(problem, posterior, rng):
            drawn_BK = step.log_q_BK > -np.inf
            log_q, log_p = step.log_q_BK[drawn_BK], exact.log_probs(step.line_B, step.previous_B)[drawn_BK]
            gap += float(np.sum(np.exp(log_q) * (log_q - log_p)))
    return gap / (samples * len(problem.chain.row_N))
