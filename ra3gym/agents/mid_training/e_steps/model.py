"""An E-step under a language model: the emission is the model's likelihood of a line with a latent in its context."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ra3gym.abstractions.inference.posterior import viterbi_paths
from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.codebook import paths_of, words_by_latent
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.diagnosis import line_gains
from ra3gym.abstractions.latents.emissions import model_emissions
from ra3gym.abstractions.latents.prior import fit_prior, prior_of_paths
from ra3gym.agents.mid_training.e_steps.agent import AgentEStep
from ra3gym.agents.mid_training.inference.posteriors import ExactAgent, InferenceAgent
from ra3gym.lm import LoadedModel
from ra3gym.tasks import ExpertTrace


@dataclass(frozen=True)
class ModelEStep:
    """Infers latents under a model that has been trained on annotated traces.

    Attributes:
        loaded: the model, with its tokenizer's latents.
        agent: finds posteriors; `ExactAgent` means forward-backward and the Viterbi path.
        num_latents: how many of the tokenizer's latents to use; all when `None`.
        context_lines: lines of code before a line that the model reads; all when `None`.
        prior_iterations: EM iterations on the gate and on `p(latent | prompt)`, with fixed emissions.
        undocumented_weight: weight of an undocumented trace for gate and fresh latents, as for a codebook: only
            documented ones teach where segments begin.
        previous: the annotations of these traces that the model was trained on: EM starts from their gate and fresh
            latents. Without them it starts from uniform ones, where latents that the model hardly tells apart collapse.
    """

    loaded: LoadedModel
    agent: InferenceAgent
    num_latents: int | None = None
    context_lines: int | None = None
    prior_iterations: int = 5
    undocumented_weight: float = 0.0
    previous: Annotations | None = None

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; metrics are `evidence` and `elbo_gap` (nats per line), `latents_named` and `seconds`.

        Raises:
            DataError, ModelError: as `ra3gym.abstractions.latents.emissions.model_emissions`; `DataError` also for
                previous annotations of other traces.
        """
        started = time.perf_counter()
        corpus = encode_traces(traces)
        log_emission_NK = np.concatenate(
            model_emissions(
                self.loaded.model,
                self.loaded.tokenizer,
                traces,
                num_latents=self.num_latents,
                context_lines=self.context_lines,
            )
        )
        start = None
        if self.previous is not None:
            start = prior_of_paths(corpus, self.previous.paths, log_emission_NK.shape[1])
        if isinstance(self.agent, ExactAgent):
            fitted = fit_prior(
                corpus,
                log_emission_NK,
                start=start,
                undocumented_weight=self.undocumented_weight,
                iterations=self.prior_iterations,
            )
            paths = tuple(paths_of(corpus, *viterbi_paths(fitted.chain)))
            names = words_by_latent(corpus, fitted.word_WK)
            metrics = {
                "evidence": fitted.evidence[-1],
                "elbo_gap": 0.0,
                "latents_named": float(sum(bool(words) for words in names)),
            }
            found = Annotations(paths, tuple(names), metrics, line_gains(fitted.chain, paths))
        else:
            sampler = AgentEStep(self.agent)
            fitted = fit_prior(
                corpus,
                log_emission_NK,
                sampler.new_infer(rng),
                start=start,
                undocumented_weight=self.undocumented_weight,
                iterations=self.prior_iterations,
            )
            found = sampler.annotate(corpus, fitted.chain, fitted.word_WK, rng)
        seconds = time.perf_counter() - started
        return Annotations(found.paths, found.names, {**found.metrics, "seconds": seconds}, found.gains)
