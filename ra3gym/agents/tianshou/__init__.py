"""Adapters to tianshou (extra `rl`): vector environments, actors and critics, inference agents."""

from ra3gym.agents.tianshou.adapter import (
    DecoderPriorActor,
    GymnasiumVectorEnv,
    MaskedActor,
    UnmaskedCritic,
    as_vector_env,
)

__all__ = ["DecoderPriorActor", "GymnasiumVectorEnv", "MaskedActor", "UnmaskedCritic", "as_vector_env"]
