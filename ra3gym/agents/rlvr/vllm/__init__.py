"""A vLLM server as the sampler of rollouts."""

from ra3gym.agents.rlvr.vllm.sampler import VLLMSampler

__all__ = ["VLLMSampler"]
