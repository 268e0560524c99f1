"""RLVR: reinforcement learning on unit-test rewards, with the algorithm, the scope and the sampler as parts."""

from ra3gym.agents.rlvr.trainer import (
    RLVRConfig,
    RLVRStep,
    SampledPrograms,
    group_advantages,
    sample_programs,
    train_rlvr,
)

__all__ = ["RLVRConfig", "RLVRStep", "SampledPrograms", "group_advantages", "sample_programs", "train_rlvr"]
