"""Inference agents by name: the exact posterior, the policy gradient, other libraries' algorithms, a user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ra3gym.agents.mid_training.inference.library_agents import LIBRARY_AGENTS, make_library_agent
from ra3gym.agents.mid_training.inference.policy_gradient import PolicyGradientAgent
from ra3gym.agents.mid_training.inference.posteriors import ExactAgent, InferenceAgent, ViterbiAgent
from ra3gym.errors import UnknownNameError

_AGENTS: dict[str, Callable[[], InferenceAgent]] = {
    "exact": ExactAgent,
    "viterbi": ViterbiAgent,
    "policy_gradient": PolicyGradientAgent,
    **{
        f"{library}:{algorithm}": partial(make_library_agent, f"{library}:{algorithm}")
        for library, algorithms in LIBRARY_AGENTS.items()
        for algorithm in algorithms
    },
}


def register_inference_agent(name: str, factory: Callable[[], InferenceAgent]) -> None:
    """Make `factory()` available as `make_inference_agent(name)` and, inside EM, as `make_e_step(name)`."""
    _AGENTS[name] = factory


def make_inference_agent(name: str) -> InferenceAgent:
    """The agent registered under `name`; `UnknownNameError` lists the known ones."""
    if name not in _AGENTS:
        raise UnknownNameError(
            "inference agent", name, _AGENTS, "Add your own with ra3gym.agents.mid_training.register_inference_agent."
        )
    return _AGENTS[name]()


def inference_agent_names() -> list[str]:
    """What `make_inference_agent` takes."""
    return list(_AGENTS)
