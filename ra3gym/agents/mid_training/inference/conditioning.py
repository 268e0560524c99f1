"""An easier problem with the same posterior, and the seeds of global generators: what learners of other libraries need.

Shape letters: see CONTRIBUTING.md (U distinct lines, K latents, F features, N lines).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from scipy.special import logsumexp

from ra3gym.abstractions.inference.problem import InferenceProblem


def conditioned(problem: InferenceProblem, floor: float) -> InferenceProblem:
    """Return a problem with nearly the same posterior, in units that value networks learn easily.

    Each line's emissions lose their mean over latents, `log mean_k p(line | k)`. The posterior does not depend on this
    constant, but it is tens of nats, and the differences between latents are a few. The remainder is raised to at least
    `floor` nats, except for impossible latents, so that early mistakes cost little. This raises no latent's odds
    against the line's mean above `e^floor`. Features are standardized over the lines.
    """
    log_emission_UK = problem.chain.log_emission_UK
    mean_U1 = logsumexp(log_emission_UK, axis=1, keepdims=True) - np.log(problem.num_latents)
    centered_UK = log_emission_UK - np.where(np.isneginf(mean_U1), 0.0, mean_U1)
    raised_UK = np.where(np.isneginf(centered_UK), -np.inf, np.maximum(centered_UK, floor))
    spread_F = problem.feature_NF.std(axis=0)
    feature_NF = (problem.feature_NF - problem.feature_NF.mean(axis=0)) / np.where(spread_F > 1e-6, spread_F, 1.0)
    return replace(
        problem, chain=replace(problem.chain, log_emission_UK=raised_UK), feature_NF=feature_NF.astype(np.float32)
    )


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch inside the block; restore their states at its end."""
    # The noqa: the libraries draw from numpy's old global generator.
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
