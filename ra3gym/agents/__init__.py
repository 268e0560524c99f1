"""RA3's three stages as plug-ins: the E-step infers latents, the M-step distils them, RLVR improves on tests' verdicts.

An E-step is any object with `infer(traces, rng) -> Annotations`; an inference agent, `fit(problem, rng)`, finds the
posterior inside one. `register_e_step`, `register_inference_agent` and `register_m_step` give a user's own a name.
`distill` trains a model on documents (`ra3gym.agents.documents` writes them), `em.run` alternates E-step and M-step,
`rlvr.train` goes on from there. `sb3` and `tianshou` hold the adapters to these libraries.
"""

from ra3gym.agents.annotations import Annotations
from ra3gym.agents.e_step import EStep, make_e_step, register_e_step
from ra3gym.agents.inference import InferenceAgent, PathPosterior, elbo_gap
from ra3gym.agents.inference_agents import make_inference_agent, register_inference_agent
from ra3gym.agents.m_step import MStep, MStepConfig, distill, make_m_step, register_m_step
from ra3gym.agents.rlvr import RLVRConfig

__all__ = [
    "Annotations",
    "EStep",
    "InferenceAgent",
    "MStep",
    "MStepConfig",
    "PathPosterior",
    "RLVRConfig",
    "distill",
    "elbo_gap",
    "make_e_step",
    "make_inference_agent",
    "make_m_step",
    "register_e_step",
    "register_inference_agent",
    "register_m_step",
]
