"""The ids of the environments. They are registered when `ra3gym` is imported: Gymnasium has no plug-in hook for it."""

from __future__ import annotations

import gymnasium as gym

ENVIRONMENTS = {
    "TokenCode": "token_code",
    "LatentCode": "latent_code",
    "RationaleCode": "rationale_code",
    "TraceInference": "trace_inference",
    "OptionMDP": "option_mdp",
}
"""Name to module: the single form is `{name}Env` in it, the vector form `{name}VectorEnv` in `{module}_vector`."""


def register_envs() -> None:
    """Register every environment of the package; a second call changes nothing."""
    for name, module in ENVIRONMENTS.items():
        if f"ra3gym/{name}-v0" not in gym.registry:
            # No time limit: each environment counts its own tokens, lines or primitive steps. One around it would cut
            # episodes without grading what was written, and count an option as one step.
            gym.register(
                id=f"ra3gym/{name}-v0",
                entry_point=f"ra3gym.envs.{module}:{name}Env",
                vector_entry_point=f"ra3gym.envs.{module}_vector:{name}VectorEnv",
                max_episode_steps=None,
            )
