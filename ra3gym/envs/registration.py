"""The ids of the environments. They are registered when `ra3gym` is imported: Gymnasium has no plug-in hook for it."""

from __future__ import annotations

import gymnasium as gym

ENVIRONMENTS = {
    "TokenCode": ("code.token:TokenCodeEnv", "code.token:TokenCodeVectorEnv"),
    "LatentCode": ("code.latent:LatentCodeEnv", "code.latent:LatentCodeVectorEnv"),
    "RationaleCode": ("code.rationale:RationaleCodeEnv", "code.rationale:RationaleCodeVectorEnv"),
    "TraceInference": ("trace_inference.env:TraceInferenceEnv", "trace_inference.vector_env:TraceInferenceVectorEnv"),
    "OptionMDP": ("option_mdp.env:OptionMDPEnv", "option_mdp.vector_env:OptionMDPVectorEnv"),
}
"""Name to the entry points of the single and of the vector form, both below `ra3gym.envs`."""


def register_envs() -> None:
    """Register every environment of the package; a second call changes nothing."""
    for name, (single, vector) in ENVIRONMENTS.items():
        if f"ra3gym/{name}-v0" not in gym.registry:
            # No time limit: each environment counts its own tokens, lines or primitive steps. One around it would cut
            # episodes without grading what was written, and count an option as one step.
            gym.register(
                id=f"ra3gym/{name}-v0",
                entry_point=f"ra3gym.envs.{single}",
                vector_entry_point=f"ra3gym.envs.{vector}",
                max_episode_steps=None,
            )
