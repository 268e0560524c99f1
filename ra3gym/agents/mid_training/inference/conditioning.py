"""What the agents made of other libraries share: a problem that is easier to learn, seeds, and the posterior learnt.

Shape suffixes: N lines, U rows of emissions, B lines asked about, K latents, D observed numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp

from ra3gym.abstractions.inference.posterior import FloatArray, IntArray
from ra3gym.abstractions.inference.problem import Float32Array, InferenceProblem


def conditioned(problem: InferenceProblem, floor: float) -> InferenceProblem:
    """A problem with nearly the same posterior, in units that learners are used to.

    Each line's emissions lose their mean over latents, `log mean_k p(line | k)`: a constant per line cancels in the
    posterior, but tens of nats of it would drown what the latents differ by. What is left is raised to at least `floor`
    nats, impossible latents excepted, so that first attempts cost little; no latent's odds against the line's mean rise
    above `e^floor` by it. Features are standardised over the lines.
    """
    log_emission_UK = problem.chain.log_emission_UK
    mean_U1 = logsumexp(log_emission_UK, axis=1, keepdims=True) - np.log(problem.num_latents)
    centred_UK = log_emission_UK - np.where(np.isneginf(mean_U1), 0.0, mean_U1)
    raised_UK = np.where(np.isneginf(centred_UK), -np.inf, np.maximum(centred_UK, floor))
    spread_F = problem.feature_NF.std(axis=0)
    feature_NF = (problem.feature_NF - problem.feature_NF.mean(axis=0)) / np.where(spread_F > 1e-6, spread_F, 1.0)
    return replace(
        problem, chain=replace(problem.chain, log_emission_UK=raised_UK), feature_NF=feature_NF.astype(np.float32)
    )


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch, which the libraries draw from; put them back after."""
    # The noqa: numpy's old global generator is the one that the libraries draw from.
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@dataclass(frozen=True)
class LearntPosterior:
    """The posterior of a network that scores latents.

    problem: the one learnt on. scores: float32 observations (B, O) to scores (B, K); log-probabilities up to a constant
    or, if `greedy`, values, of which the highest takes all mass. Latents that are impossible get none, unless all are.
    """

    problem: InferenceProblem
    scores: Callable[[Float32Array], FloatArray]
    greedy: bool

    def log_probs(self, line_B: IntArray, previous_B: IntArray) -> FloatArray:
        """See `ra3gym.agents.mid_training.inference.posteriors.PathPosterior`."""
        score_BK = self.scores(self.problem.observations(line_B, previous_B))
        legal_BK = self.problem.rewards(line_B, previous_B) > -np.inf
        legal_BK |= ~legal_BK.any(axis=1, keepdims=True)
        score_BK = np.where(legal_BK, score_BK, -np.inf)
        if self.greedy:
            best_B1 = score_BK.argmax(axis=1)[:, None]
            return np.where(np.arange(score_BK.shape[1]) == best_B1, 0.0, -np.inf)
        return np.asarray(log_softmax(score_BK, axis=1))
