"""An E-step around any inference agent: EM on a codebook, with the agent's paths instead of exact posteriors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from ra3gym.abstractions.inference.path_counts import counts_of_paths, switch_probabilities
from ra3gym.abstractions.inference.posterior import FloatArray, Infer, LatentChain, Posterior
from ra3gym.abstractions.inference.problem import problem_from_chain
from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.codebook import (
    CodebookConfig,
    latent_chain,
    learn_codebook,
    paths_of,
    words_by_latent,
)
from ra3gym.abstractions.latents.corpus import LineCorpus, encode_traces
from ra3gym.abstractions.latents.diagnosis import line_gains
from ra3gym.agents.mid_training.inference.posteriors import InferenceAgent, PathPosterior, elbo_gap, sample_paths
from ra3gym.errors import ConfigError
from ra3gym.tasks import ExpertTrace


@dataclass(frozen=True)
class AgentEStep:
    """Learns a codebook by EM in which an agent's sampled paths stand in for exact posteriors.

    With an agent that learns from rewards, nothing runs forward-backward: a restart is chosen by the bound that its own
    paths attain, each trace gets the best of its sampled paths, and the exact evidence serves the metrics only.

    Attributes:
        agent: finds the posterior of each iteration's codebook, starting from the previous iteration's if it can.
        config: the codebook, as for the exact E-step.
        samples: paths drawn for each trace for the counts of an iteration, 2 to 16.
        final_samples: paths drawn for each trace, in addition to the greedy one, to choose the final one from.
        final_fits: how often the agent continues on the learned codebook, now on every trace.
    """

    agent: InferenceAgent
    config: CodebookConfig = field(default_factory=lambda: CodebookConfig(restarts=4))
    samples: int = 4
    final_samples: int = 16
    final_fits: int = 3

    def __post_init__(self) -> None:
        if self.samples < 1 or self.final_samples < 0 or self.final_fits < 1:
            raise ConfigError(
                f"samples={self.samples}, final_samples={self.final_samples}, final_fits={self.final_fits}: give at "
                "least 1, 0 and 1"
            )

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; metrics are those of the exact E-step, and `elbo_gap`, in nats per line.

        `evidence` is the bound that the agent's paths attained while the codebook was learned. The gap is the distance
        of the final posterior from the exact evidence, over all traces.
        """
        started = time.perf_counter()
        corpus = encode_traces(traces)
        codebook = learn_codebook(corpus, self.config, rng, self.new_infer)
        annotations = self.annotate(corpus, latent_chain(corpus, codebook), codebook.word_WK, rng)
        seconds = time.perf_counter() - started
        return replace(
            annotations, metrics={**annotations.metrics, "evidence": codebook.evidence[-1], "seconds": seconds}
        )

    def with_codebook(self, change: Callable[[CodebookConfig], CodebookConfig]) -> Self:
        """Return the same E-step with its codebook changed."""
        return replace(self, config=change(self.config))

    def new_infer(self, rng: np.random.Generator) -> Infer:
        """Return a function that estimates expected counts from sampled paths.

        Each call starts the agent from the posterior of the previous call.
        """
        posterior: PathPosterior | None = None

        def infer(chain: LatentChain) -> Posterior:
            nonlocal posterior
            problem = problem_from_chain(chain)
            posterior = self.agent.fit(problem, rng, posterior)
            drawn = [sample_paths(problem, posterior, rng) for _ in range(self.samples)]
            return counts_of_paths(
                chain, np.stack([one.latent_N for one in drawn]), np.stack([one.elbo_M for one in drawn])
            )

        return infer

    def annotate(
        self, corpus: LineCorpus, chain: LatentChain, word_WK: FloatArray, rng: np.random.Generator
    ) -> Annotations:
        """Annotate each trace under a learned chain with the most probable of its greedy and sampled paths.

        Metrics: `evidence` and `elbo_gap`, nats per line; `latents_named`.
        """
        problem = problem_from_chain(chain)
        posterior: PathPosterior | None = None
        for _ in range(self.final_fits):
            posterior = self.agent.fit(problem, rng, posterior)
        assert posterior is not None
        best = sample_paths(problem, posterior, rng, greedy=True)
        latent_N, log_joint_M = best.latent_N, best.log_joint_M
        for _ in range(self.final_samples):
            drawn = sample_paths(problem, posterior, rng)
            better_M = drawn.log_joint_M > log_joint_M
            latent_N = np.where(better_M[problem.trace_N], drawn.latent_N, latent_N)
            log_joint_M = np.maximum(drawn.log_joint_M, log_joint_M)
        switch_N = switch_probabilities(chain, latent_N[None])[0] > 0.5
        paths = tuple(paths_of(corpus, latent_N, switch_N))
        names = words_by_latent(corpus, word_WK)
        return Annotations(
            paths=paths,
            names=tuple(names),
            metrics={
                "evidence": float(problem.log_evidence_M.sum() / len(latent_N)),
                "elbo_gap": elbo_gap(problem, posterior, rng),
                "latents_named": float(sum(bool(words) for words in names)),
            },
            gains=line_gains(chain, paths),
        )
