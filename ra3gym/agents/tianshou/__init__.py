"""Adapters to tianshou 2: vector environments, actors and critics, inference agents.

Importing this package without the extra `rl` raises `MissingExtraError`.
"""

from ra3gym.errors import importing_extra

with importing_extra("rl", ("tianshou",), needed_for=__name__):
    from ra3gym.agents.tianshou.adapter import (
        DecoderPriorActor,
        GymnasiumVectorEnv,
        MaskedActor,
        UnmaskedCritic,
        as_vector_env,
    )

__all__ = ["DecoderPriorActor", "GymnasiumVectorEnv", "MaskedActor", "UnmaskedCritic", "as_vector_env"]
