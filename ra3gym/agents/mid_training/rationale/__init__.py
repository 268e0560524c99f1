"""Rationale latents: comments that the model writes above the expert's lines, learned by policy gradient.

`e_step` is the E-step, `training` its policy gradient. What they need, from the ground up: `config`, `layout` (a trace
as tokens with places for comments), `vocabulary` (what a comment may hold), `rows` (a trace with its comments as
tokens), `rollouts` (sampling), `scoring` (log-probabilities) and `rewards`.

Shape letters: see CONTRIBUTING.md (G rollouts of a trace, Q its places, T tokens after the prefix, V vocabulary).
"""

from ra3gym.agents.mid_training.rationale.config import RationaleConfig, brite_config
from ra3gym.agents.mid_training.rationale.e_step import RationaleEStep, RationaleTrace, annotate
from ra3gym.agents.mid_training.rationale.training import RationaleStep, train_rationales

__all__ = [
    "RationaleConfig",
    "RationaleEStep",
    "RationaleStep",
    "RationaleTrace",
    "annotate",
    "brite_config",
    "train_rationales",
]
