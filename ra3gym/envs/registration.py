"""The ids of the environments. They are registered when `ra3gym` is imported: Gymnasium has no plug-in hook for it."""

from __future__ import annotations

import gymnasium as gym


def register_envs() -> None:
    """Register every environment of the package; a second call changes nothing."""
    if "ra3gym/TokenCode-v0" not in gym.registry:
        # The environment counts its own tokens (`max_new_tokens`) and grades what was written by then, so a time
        # limit around it would only cut episodes without a reward. It returns observations of its own making.
        gym.register(
            id="ra3gym/TokenCode-v0",
            entry_point="ra3gym.envs.token_code:TokenCodeEnv",
            vector_entry_point="ra3gym.envs.token_code_vector:TokenCodeVectorEnv",
            max_episode_steps=None,
        )
    if "ra3gym/LatentCode-v0" not in gym.registry:
        # As above: it counts its own tokens and decisions.
        gym.register(
            id="ra3gym/LatentCode-v0",
            entry_point="ra3gym.envs.latent_code:LatentCodeEnv",
            vector_entry_point="ra3gym.envs.latent_code_vector:LatentCodeVectorEnv",
            max_episode_steps=None,
        )
    if "ra3gym/TraceInference-v0" not in gym.registry:
        # An episode is as long as its trace.
        gym.register(
            id="ra3gym/TraceInference-v0",
            entry_point="ra3gym.envs.trace_inference:TraceInferenceEnv",
            vector_entry_point="ra3gym.envs.trace_inference_vector:TraceInferenceVectorEnv",
            max_episode_steps=None,
        )
    if "ra3gym/OptionMDP-v0" not in gym.registry:
        # The horizon counts primitive steps, not decisions, so the environment keeps it itself.
        gym.register(
            id="ra3gym/OptionMDP-v0",
            entry_point="ra3gym.envs.option_mdp:OptionMDPEnv",
            vector_entry_point="ra3gym.envs.option_mdp_vector:OptionMDPVectorEnv",
            max_episode_steps=None,
        )
