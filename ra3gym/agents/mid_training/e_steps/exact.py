"""The exact E-step: a codebook learned by EM with exact posteriors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from ra3gym.abstractions.latents.annotations import Annotations
from ra3gym.abstractions.latents.codebook import CodebookConfig, latent_chain, learn_codebook, viterbi, words_by_latent
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.diagnosis import line_gains
from ra3gym.tasks import ExpertTrace


@dataclass(frozen=True)
class ExactEStep:
    """Learns a codebook by EM with exact posteriors and annotates each trace with its Viterbi path."""

    config: CodebookConfig = field(default_factory=CodebookConfig)

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; metrics are `evidence` (nats per line), `latents_named` and `seconds`."""
        started = time.perf_counter()
        corpus = encode_traces(traces)
        codebook = learn_codebook(corpus, self.config, rng)
        names = words_by_latent(corpus, codebook.word_WK)
        paths = tuple(viterbi(corpus, codebook))
        return Annotations(
            paths=paths,
            names=tuple(names),
            metrics={
                "evidence": codebook.evidence[-1],
                "latents_named": float(sum(bool(words) for words in names)),
                "seconds": time.perf_counter() - started,
            },
            gains=line_gains(latent_chain(corpus, codebook), paths),
        )

    def with_codebook(self, change: Callable[[CodebookConfig], CodebookConfig]) -> Self:
        """Return the same E-step with its codebook changed."""
        return replace(self, config=change(self.config))
