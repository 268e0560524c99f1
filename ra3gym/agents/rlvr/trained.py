"""The policy under training: the module, its optimizer, and whole weights where both lie in shards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ra3gym.agents.rlvr.algorithms.registry import Algorithm
from ra3gym.agents.rlvr.checkpoint import load_optimizer, read_state, training_state, whole_weights
from ra3gym.agents.rlvr.config import RLVRConfig
from ra3gym.agents.rlvr.policy import Policy
from ra3gym.lm import LoadedModel, load


class TrainedPolicy:
    """A policy and its AdamW, prepared for one process, several, or shards over several (FSDP2).

    Args:
        loaded: the policy's language model, with its tokenizer.
        policy: around that model.
        config: rates and weight decay.
        accelerator: wraps policy and optimizer.
        state: `training_state` of the checkpoint to continue from; `None` starts with a new optimizer.
    """

    def __init__(
        self, loaded: LoadedModel, policy: Policy, config: RLVRConfig, accelerator: Any, state: dict[str, Any] | None
    ) -> None:
        sharded = str(accelerator.distributed_type).endswith("FSDP")
        # Sampling and saving need whole weights.
        self._whole: Any = copy.deepcopy(loaded.model) if sharded else None
        self.exported = LoadedModel(loaded.model if self._whole is None else self._whole, loaded.tokenizer)
        """The language model with its whole weights, as of the last `current_model`."""
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.rate_at(1), weight_decay=config.weight_decay, betas=(0.9, 0.95)
        )
        self.policy, self.optimizer = accelerator.prepare(policy, optimizer)
        if state is not None:
            load_optimizer(self.policy, self._plain_optimizer, state)

    def current_model(self) -> Any:
        """Return the language model with the policy's weights of now. Every rank must call this."""
        if self._whole is not None:
            weights = whole_weights(self.policy, on_all_ranks=True)
            names = [name for name in self._whole.state_dict() if f"model.{name}" in weights]
            self._whole.load_state_dict({name: weights[f"model.{name}"] for name in names}, strict=False)
        return self.exported.model

    def is_finite(self) -> bool:
        """Whether no weight that is kept in this process is NaN or infinite."""
        return all(bool(weight.isfinite().all()) for weight in self.exported.model.parameters())

    def state(self) -> dict[str, Any]:
        """Return the `training_state` to store. Every rank must call this."""
        return training_state(self.policy, self._plain_optimizer)

    def set_learning_rate(self, rate: float) -> None:
        """Use this rate for the next updates."""
        for group in self._plain_optimizer.param_groups:
            group["lr"] = rate

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        plain: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return plain


def start_policy(
    loaded: LoadedModel,
    algorithm: Algorithm,
    config: RLVRConfig,
    compute: torch.dtype | None,
    checkpoint: Path | None,
    accelerator: Any,
) -> TrainedPolicy:
    """Return the policy and its optimizer, as they start or as the checkpoint has them."""
    state = None if checkpoint is None else read_state(checkpoint)
    if checkpoint is not None:
        loaded.model.load_state_dict(load(checkpoint / "model").model.state_dict())
    policy = Policy(loaded.model, value_head=algorithm.needs_value, autocast=compute)
    if policy.value_head is not None and state is not None:
        policy.value_head.load_state_dict(state["value_head"])
    return TrainedPolicy(loaded, policy, config, accelerator, state)
