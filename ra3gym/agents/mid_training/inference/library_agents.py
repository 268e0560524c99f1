"""Inference agents of other libraries, by name: "sb3:PPO", "sb3contrib:MaskablePPO", "tianshou:DiscreteSAC", ..."""

from __future__ import annotations

from typing import Any

from ra3gym.agents.mid_training.inference.posteriors import InferenceAgent
from ra3gym.errors import ConfigError, UnknownNameError

LIBRARY_AGENTS = {
    "sb3": ("A2C", "DQN", "PPO"),
    "sb3contrib": ("MaskablePPO", "QRDQN", "TRPO"),
    "tianshou": ("DQN", "DiscreteSAC", "PPO"),
}
"""The algorithms of each library that can be named."""


def make_library_agent(name: str, **options: Any) -> InferenceAgent:
    """The agent of a name like "sb3:PPO"; `options` are the fields of its class, `SB3Agent` or `TianshouAgent`.

    The libraries are imported here, on first use.

    Raises:
        UnknownNameError: no such library or algorithm; the message lists all names.
        ConfigError: an option that the agent does not have, or a value out of range.
    """
    known = [f"{library}:{algorithm}" for library, algorithms in LIBRARY_AGENTS.items() for algorithm in algorithms]
    if name not in known:
        raise UnknownNameError("inference agent", name, known)
    library, _, algorithm = name.partition(":")
    agent_class: Any
    if library == "tianshou":
        from ra3gym.agents.tianshou.inference import TianshouAgent as agent_class
    else:
        from ra3gym.agents.sb3.inference import SB3Agent as agent_class
    fields = sorted(agent_class.__dataclass_fields__.keys() - {"algorithm"})
    if unknown := sorted(options.keys() - set(fields)):
        raise ConfigError(
            f"{name} has no option {', '.join(map(repr, unknown))}; it has {', '.join(fields)}, and hands `options` on "
            "to the algorithm's class"
        )
    agent: InferenceAgent = agent_class(algorithm=algorithm, **options)
    return agent
