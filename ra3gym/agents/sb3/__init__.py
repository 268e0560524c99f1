"""Adapters to stable-baselines3 and sb3-contrib: vector environments, policies, inference agents.

Importing this package without the extra `rl` raises `MissingExtraError`.
"""

from ra3gym.errors import importing_extra

with importing_extra("rl", ("stable_baselines3", "sb3_contrib"), needed_for=__name__):
    from ra3gym.agents.sb3.adapter import DecoderPriorPolicy, GymnasiumVecEnv, MaskableDecoderPriorPolicy, as_vec_env

__all__ = ["DecoderPriorPolicy", "GymnasiumVecEnv", "MaskableDecoderPriorPolicy", "as_vec_env"]
