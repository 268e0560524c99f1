"""E-steps: from expert traces to latents, by name.

An E-step is any object with `infer(traces, rng) -> Annotations`. `register_e_step` adds a user's own class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np

from ra3gym.abstractions.latents.annotations import Annotations, names_by_company
from ra3gym.abstractions.latents.codebook import CodebookConfig, latent_chain, learn_codebook, viterbi, words_by_latent
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.diagnosis import line_gains
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training.e_steps.agent import AgentEStep
from ra3gym.agents.mid_training.e_steps.controls import AstEStep, MacroEStep, PauseEStep, RandomEStep, ShuffledEStep
from ra3gym.agents.mid_training.inference.agents import inference_agent_names, make_inference_agent
from ra3gym.agents.mid_training.inference.policy_gradient import PolicyGradientAgent
from ra3gym.agents.mid_training.inference.posteriors import ViterbiAgent
from ra3gym.errors import DataError, UnknownNameError
from ra3gym.lm import LoadedModel
from ra3gym.tasks import ExpertTrace


class EStep(Protocol):
    """Infers latents over expert traces.

    An E-step that reads or trains the model also has `for_model(loaded) -> EStep`: the loop calls it before each
    iteration's `infer`, with the model as the previous M-step left it.
    """

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """Latents for every trace; the same `rng` state gives the same result."""
        ...


@runtime_checkable
class NeedsModel(Protocol):
    """An E-step that reads or trains the model that is being mid-trained."""

    def for_model(self, loaded: LoadedModel) -> EStep:
        """Return the E-step for this model, which it may train in place."""
        ...


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


class OracleEStep:
    """The planted labels as latents: an upper bound, never a method. Names come from co-occurrence with words."""

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        """See `EStep.infer`; `DataError` when there are no traces, or one carries no planted labels."""
        if not traces:
            raise DataError("there are no traces to infer latents over: the E-step needs at least one expert trace")
        paths = []
        for trace in traces:
            if trace.planted is None:
                raise DataError(
                    f"trace {trace.task.task_id!r} has no planted labels: the oracle needs a planted domain"
                )
            switches = [True, *(a != b for a, b in zip(trace.planted, trace.planted[1:], strict=False))]
            paths.append(LatentPath(trace.planted, tuple(switches)))
        num_latents = 1 + max(max(path.latents) for path in paths)
        return Annotations(paths=tuple(paths), names=names_by_company(traces, paths, num_latents))


_E_STEPS: dict[str, Callable[[], EStep]] = {
    "exact": ExactEStep,
    "viterbi": partial(AgentEStep, ViterbiAgent(), samples=1, final_samples=0, final_fits=1),
    "policy_gradient": partial(AgentEStep, PolicyGradientAgent(updates=100)),
    "pause": partial(PauseEStep, ExactEStep()),
    "random": partial(RandomEStep, ExactEStep()),
    "shuffled": partial(ShuffledEStep, ExactEStep()),
    "macro": MacroEStep,
    "ast": AstEStep,
    "oracle": OracleEStep,
}


def register_e_step(name: str, factory: Callable[[], EStep]) -> None:
    """Make `factory()` available as `make_e_step(name)`; a name that exists is replaced."""
    _E_STEPS[name] = factory


def make_e_step(name: str, codebook: CodebookConfig | None = None) -> EStep:
    """The E-step registered under `name`; the name of any inference agent gives EM around that agent.

    Args:
        name: "exact", "policy_gradient", "sb3:PPO", "macro", ..., or one of your own.
        codebook: takes the place of the default codebook in the E-steps that learn one. An agent that learns anew in
            every iteration is slow in EM: by default those of other libraries get one restart of five iterations.

    Raises:
        UnknownNameError: no such E-step; the message lists them.
    """
    if name in _E_STEPS:
        e_step = _E_STEPS[name]()
    elif name in inference_agent_names():
        e_step = AgentEStep(make_inference_agent(name), CodebookConfig(restarts=1, iterations=5), final_fits=1)
    else:
        known = [*_E_STEPS, *(agent for agent in inference_agent_names() if agent not in _E_STEPS)]
        raise UnknownNameError("E-step", name, known, "Add your own with ra3gym.agents.mid_training.register_e_step.")
    return e_step if codebook is None else with_codebook(e_step, lambda _: codebook)


def with_codebook(e_step: EStep, change: Callable[[CodebookConfig], CodebookConfig]) -> EStep:
    """The same E-step with its codebook changed, where it learns one; else as it is."""
    if isinstance(e_step, ExactEStep | AgentEStep):
        return replace(e_step, config=change(e_step.config))
    if isinstance(e_step, PauseEStep | RandomEStep | ShuffledEStep):
        return replace(e_step, segments=with_codebook(e_step.segments, change))
    if isinstance(e_step, MacroEStep):
        return replace(e_step, num_latents=change(CodebookConfig(num_latents=e_step.num_latents)).num_latents)
    return e_step
