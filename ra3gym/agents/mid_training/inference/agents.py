"""Inference agents by name: the exact posterior, the policy gradient, other libraries' algorithms, a user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ra3gym.agents.mid_training.inference.library_agents import LIBRARY_ALGORITHMS
from ra3gym.agents.mid_training.inference.policy_gradient import PolicyGradientAgent
from ra3gym.agents.mid_training.inference.posteriors import ExactAgent, InferenceAgent, ViterbiAgent
from ra3gym.plugins import Registry


def _sb3_agent(algorithm: str, **options: Any) -> InferenceAgent:
    from ra3gym.agents.sb3.inference import SB3Agent

    return SB3Agent.named(algorithm, **options)


def _tianshou_agent(algorithm: str, **options: Any) -> InferenceAgent:
    from ra3gym.agents.tianshou.inference import TianshouAgent

    return TianshouAgent.named(algorithm, **options)


_LIBRARIES: dict[str, Callable[..., InferenceAgent]] = {
    "sb3": _sb3_agent,
    "sb3contrib": _sb3_agent,
    "tianshou": _tianshou_agent,
}

AGENTS: Registry[Callable[..., InferenceAgent]] = Registry(
    "inference agent",
    "ra3gym.agents.mid_training.register_inference_agent",
    {
        "exact": ExactAgent,
        "viterbi": ViterbiAgent,
        "policy_gradient": PolicyGradientAgent,
        **{
            f"{library}:{algorithm}": partial(_LIBRARIES[library], algorithm)
            for library, algorithms in LIBRARY_ALGORITHMS.items()
            for algorithm in algorithms
        },
    },
)


def register_inference_agent(name: str, factory: Callable[..., InferenceAgent]) -> None:
    """Make `factory()` available as `make_inference_agent(name)` and, inside EM, as `make_e_step(name)`."""
    AGENTS.register(name, factory)


def make_inference_agent(name: str, **options: Any) -> InferenceAgent:
    """Return the agent registered under `name`, made with `options`.

    Libraries are imported here, on first use.

    Raises:
        UnknownNameError: no such agent; the message lists the known ones.
        ConfigError: an option that a library's agent does not have, or a value out of range.
        MissingExtraError: the agent's library is not installed.
    """
    return AGENTS[name](**options)
