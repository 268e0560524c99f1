"""RLVR: reinforcement learning on unit-test rewards, with the algorithm, the scope and the sampler as parts.

`train(model, tasks, algorithm="grpo")` runs it. An algorithm is an advantage, an objective and numbers (`algorithm`,
`register_algorithm`); a `Scope` says which tokens it acts on (all, latents, comments, ...); a `Sampler` samples the
programs (the model itself, or a vLLM server); a `Reward` grades them (`ra3gym.verify.Grader`, or your own function).
"""

from ra3gym.agents.rlvr.algorithms.registry import (
    Algorithm,
    RolloutBatch,
    algorithm,
    algorithm_names,
    register_advantage,
    register_algorithm,
    register_objective,
    token_weights,
)
from ra3gym.agents.rlvr.algorithms.scope import Scope, register_scope, scope_names
from ra3gym.agents.rlvr.config import RLVRConfig
from ra3gym.agents.rlvr.rollouts.rewards import FunctionReward, Reward
from ra3gym.agents.rlvr.rollouts.sampler import ModelSampler, Sampler
from ra3gym.agents.rlvr.steps import RLVRStep
from ra3gym.agents.rlvr.training import RLVRResult, train
from ra3gym.tasks.answers import answer_reader, without_latents

__all__ = [
    "Algorithm",
    "FunctionReward",
    "ModelSampler",
    "RLVRConfig",
    "RLVRResult",
    "RLVRStep",
    "Reward",
    "RolloutBatch",
    "Sampler",
    "Scope",
    "algorithm",
    "algorithm_names",
    "answer_reader",
    "register_advantage",
    "register_algorithm",
    "register_objective",
    "register_scope",
    "scope_names",
    "token_weights",
    "train",
    "without_latents",
]
