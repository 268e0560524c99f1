"""Adapters to stable-baselines3 and sb3-contrib (extra `rl`): vector environments, policies, inference agents."""

from ra3gym.agents.sb3.adapter import DecoderPriorPolicy, GymnasiumVecEnv, MaskableDecoderPriorPolicy, as_vec_env

__all__ = ["DecoderPriorPolicy", "GymnasiumVecEnv", "MaskableDecoderPriorPolicy", "as_vec_env"]
