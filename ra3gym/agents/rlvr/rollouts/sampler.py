"""Samplers of rollouts: the protocol, and the one that samples from the policy in this process."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ra3gym.lm import Samples, generate
from ra3gym.lm.model import cast_weights

if TYPE_CHECKING:
    from ra3gym.lm.rendering import ForcedText
    from ra3gym.lm.stopping import StopRule


class Sampler(Protocol):
    """Samples completions from the policy's current weights."""

    on_policy_logp: bool
    """Whether `Samples.logp_RT` is what the trainer would compute. If not, the trainer computes its own values and
    weights each token by the ratio of the two (`Algorithm.off_policy_cap`).
    """

    def update(self, model: Any) -> None:
        """Sample from these weights from now on; called before the first sample and after each optimizer step."""
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        max_new_tokens: int,
        temperature: float,
        generator: torch.Generator | Sequence[torch.Generator],
        eos_ids: Collection[int],
        pad_id: int,
        allowed_mask_V: Tensor | None = None,
        stop: StopRule | None = None,
        forced: ForcedText | None = None,
    ) -> Samples:
        """Return `group_size` completions of each prompt; the same generators and weights give the same ones.

        `forced` holds the texts that they must begin with, and is given only where a prompt forces text.
        """
        ...

    def close(self) -> None:
        """Release what the sampler holds; safe to call twice."""
        ...


class ModelSampler:
    """`Sampler` over the policy in this process (`ra3gym.lm.generate`).

    Args:
        dtype: sample from a copy of the weights in this precision, made anew after each update; `None` samples from the
            weights themselves.

    Attributes:
        on_policy_logp: false with a `dtype`. The trainer keeps float32 weights and rounds in other places (autocast),
            so log-probabilities differ by hundredths of a nat.
    """

    on_policy_logp: bool

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.on_policy_logp = dtype is None
        self._dtype = dtype
        self._model: Any = None

    def update(self, model: Any) -> None:
        """See `Sampler.update`; instant without a `dtype`, as the weights are shared."""
        if self._dtype is None or model.dtype == self._dtype:
            self._model = model
            return
        if self._model is None:
            self._model = cast_weights(copy.deepcopy(model).requires_grad_(False).eval(), self._dtype)
            return
        with torch.no_grad():
            for ours, theirs in zip(self._model.parameters(), model.parameters(), strict=True):
                ours.copy_(theirs)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        max_new_tokens: int,
        temperature: float,
        generator: torch.Generator | Sequence[torch.Generator],
        eos_ids: Collection[int],
        pad_id: int,
        allowed_mask_V: Tensor | None = None,
        stop: StopRule | None = None,
        forced: ForcedText | None = None,
    ) -> Samples:
        """See `Sampler.sample` and `ra3gym.lm.generate`."""
        assert self._model is not None, "update comes before the first sample"
        return generate(
            self._model,
            prompts,
            group_size=group_size,
            max_new_tokens=max_new_tokens,
            eos_id=eos_ids,
            pad_id=pad_id,
            generator=generator,
            temperature=temperature,
            allowed_mask_V=allowed_mask_V,
            stop=stop,
            forced=forced,
        )

    def close(self) -> None:
        """Release the weights."""
        self._model = None
