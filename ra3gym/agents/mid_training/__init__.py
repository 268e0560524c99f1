"""Mid-training, RA3's first two stages: an E-step infers latents, an M-step trains the model on annotated traces.

`run` is the one loop over both. A recipe says what the documents are made of. An E-step is any object with
`infer(traces, rng) -> Annotations`; an inference agent, `fit(problem, rng)`, finds the posterior inside one; an M-step
trains a model on documents. Each has a `register_...` function that gives a user's own a name.
"""

from ra3gym.agents.mid_training.e_steps.given import GivenAnnotations
from ra3gym.agents.mid_training.e_steps.protocol import EStep, NeedsModel
from ra3gym.agents.mid_training.e_steps.registry import make_e_step, register_e_step
from ra3gym.agents.mid_training.inference.agents import make_inference_agent, register_inference_agent
from ra3gym.agents.mid_training.inference.posteriors import InferenceAgent, PathPosterior, elbo_gap
from ra3gym.agents.mid_training.loop import EMConfig, EMResult, run
from ra3gym.agents.mid_training.m_step import (
    MStep,
    MStepConfig,
    MStepProgress,
    distill,
    make_m_step,
    register_m_step,
)
from ra3gym.agents.mid_training.measurements import EMIteration
from ra3gym.agents.mid_training.recipe import NTP, RA3, Recipe

__all__ = [
    "NTP",
    "RA3",
    "EMConfig",
    "EMIteration",
    "EMResult",
    "EStep",
    "GivenAnnotations",
    "InferenceAgent",
    "MStep",
    "MStepConfig",
    "MStepProgress",
    "NeedsModel",
    "PathPosterior",
    "Recipe",
    "distill",
    "elbo_gap",
    "make_e_step",
    "make_inference_agent",
    "make_m_step",
    "register_e_step",
    "register_inference_agent",
    "register_m_step",
    "run",
]
