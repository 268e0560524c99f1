"""Options in known MDPs: random families, exact optima, and how long decisions last."""

from ra3gym.abstractions.options.family import random_option_mdp, random_task_family
from ra3gym.abstractions.options.horizon import (
    ExactHorizon,
    Interval,
    ObservedHorizon,
    effective_horizon,
    exact_horizon,
    observed_horizon,
    predicted_iterations,
)
from ra3gym.abstractions.options.mdp import ActionModel, Actions, OptionMDP
from ra3gym.abstractions.options.solvers import (
    ValueIteration,
    expert_episodes,
    optimal_policy,
    optimal_values,
    pruning_error,
    value_iteration,
)

__all__ = [
    "ActionModel",
    "Actions",
    "ExactHorizon",
    "Interval",
    "ObservedHorizon",
    "OptionMDP",
    "ValueIteration",
    "effective_horizon",
    "exact_horizon",
    "expert_episodes",
    "observed_horizon",
    "optimal_policy",
    "optimal_values",
    "predicted_iterations",
    "pruning_error",
    "random_option_mdp",
    "random_task_family",
    "value_iteration",
]
