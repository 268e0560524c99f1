"""TRL's own methods on the same tensors: the same losses, gradients, advantages and length punishment."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ra3gym import lm
from ra3gym.agents.rlvr.algorithms.advantages import (
    group_centered,
    group_standardized,
    leave_one_out,
    soft_overlong_punishment,
)
from ra3gym.agents.rlvr.algorithms.kl import kl_estimate
from ra3gym.agents.rlvr.algorithms.registry import Algorithm, algorithm, token_weights

trl = pytest.importorskip("trl", reason="trl, of the dev extra, is what the losses are compared with")

MAX_NEW_TOKENS = 9
R, T = 6, 7


@pytest.fixture(params=[0.0, 0.05, 0.7], ids=["on-policy", "near", "far"])
def tensors(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """Six rows of 1 to 7 tokens, float64: log-probabilities now, before and of a reference, and an advantage each."""
    rng = np.random.default_rng(3)
    logp = torch.from_numpy(-rng.exponential(size=(R, T)))
    return {
        "logp": logp,
        "old": logp + request.param * torch.from_numpy(rng.normal(size=(R, T))),
        "reference": logp + 0.3 * torch.from_numpy(rng.normal(size=(R, T))),
        "importance": torch.from_numpy(rng.uniform(0.5, 2, size=(R, T))),
        "advantage": torch.from_numpy(rng.normal(size=R)),
        "acts": torch.arange(T) < torch.tensor([7, 3, 1, 5, 7, 2])[:, None],
    }


def ours(chosen: Algorithm, tensors: dict[str, Tensor], *, importance: bool = False) -> tuple[Tensor, Tensor]:
    """The batch's loss and its gradient with respect to the log-probabilities."""
    logp, acts = tensors["logp"].clone().requires_grad_(), tensors["acts"]
    loss, _ = chosen.token_losses(logp, tensors["old"], tensors["advantage"][:, None].expand(R, T), acts)
    if importance:
        loss = loss * tensors["importance"]
    loss = loss + chosen.kl_coefficient * kl_estimate(logp, tensors["reference"], chosen.kl_estimator)
    weights = token_weights(
        acts,
        chosen.aggregation,
        num_decisions=int(acts.sum()),
        num_rows=R,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    total = (weights * loss).sum()
    total.backward()
    assert logp.grad is not None
    return total.detach(), logp.grad


def theirs(trainer: type, tensors: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """The same by the trainer's own `_compute_loss`, on an object that has what the method reads."""
    logp, acts = tensors["logp"].clone().requires_grad_(), tensors["acts"]
    stand_in = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "max_completion_length": MAX_NEW_TOKENS,
        "current_gradient_accumulation_steps": 1,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "model": SimpleNamespace(training=True),
        "accelerator": SimpleNamespace(
            num_processes=1, gather=lambda tensor: tensor, reduce=lambda tensor, reduction: tensor
        ),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_get_per_token_logps_and_entropies": lambda *args, **kwargs: (logp, torch.zeros_like(logp), None),
    } | settings
    stand_in["args"] = SimpleNamespace(
        delta=stand_in.pop("delta", None), use_bias_correction_kl=False, steps_per_generation=1
    )
    ids = torch.zeros(R, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": acts.double(),
        "advantages": tensors["advantage"],
        "old_per_token_logps": tensors["old"],
        "ref_per_token_logps": tensors["reference"],
        "importance_sampling_ratio": tensors["importance"],
        "old_logps": (tensors["old"] * acts).sum(1),
        "num_items_in_batch": acts.sum(),
    }
    loss = trainer._compute_loss(SimpleNamespace(**stand_in), None, inputs)
    loss.backward()
    assert logp.grad is not None
    return loss.detach(), logp.grad


CASES: dict[str, tuple[Algorithm, dict[str, Any]]] = {
    "grpo": (algorithm("grpo"), {}),
    "grpo with KL": (algorithm("grpo", kl_coefficient=0.04), {"beta": 0.04}),
    "grpo, dual clip": (algorithm("grpo", dual_clip=1.5), {"delta": 1.5}),
    "grpo_token": (algorithm("grpo_token"), {"loss_type": "bnpo"}),
    "dr_grpo": (algorithm("dr_grpo"), {"loss_type": "dr_grpo"}),
    "dapo": (algorithm("dapo"), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "cispo": (algorithm("cispo"), {"loss_type": "cispo", "epsilon_high": 5.0}),
    "cispo, tight": (algorithm("cispo", clip_high=0.1), {"loss_type": "cispo", "epsilon_high": 1.1}),
    "gspo": (
        algorithm("gspo"),
        {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "gspo, wide": (
        algorithm("gspo", clip_low=0.2, clip_high=0.3),
        {"importance_sampling_level": "sequence", "epsilon_low": 0.2, "epsilon_high": 0.3},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_trl(name: str, tensors: dict[str, Tensor]) -> None:
    chosen, settings = CASES[name]
    loss, gradient = ours(chosen, tensors)
    their_loss, their_gradient = theirs(trl.GRPOTrainer, tensors, **settings)
    assert_close(gradient, their_gradient, atol=1e-8, rtol=1e-6)
    assert_close(loss, their_loss, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", ["grpo with KL", "dapo", "cispo"])
def test_importance_weights_multiply_the_policy_loss_as_in_trl(name: str, tensors: dict[str, Tensor]) -> None:
    chosen, settings = CASES[name]
    loss, gradient = ours(chosen, tensors, importance=True)
    their_loss, their_gradient = theirs(trl.GRPOTrainer, tensors, use_vllm=True, **settings)
    assert_close(gradient, their_gradient, atol=1e-8, rtol=1e-6)
    assert_close(loss, their_loss, atol=1e-8, rtol=1e-6)


def test_gradient_of_rloo_is_that_of_trl(tensors: dict[str, Tensor]) -> None:
    """On-policy, and up to the constant by which "length" divides. Off-policy TRL clips, which the paper does not."""
    tensors = tensors | {"old": tensors["logp"]}
    _, gradient = ours(algorithm("rloo"), tensors)
    _, their_gradient = theirs(trl.RLOOTrainer, tensors)
    assert_close(gradient * MAX_NEW_TOKENS, their_gradient, atol=1e-8, rtol=1e-6)


@pytest.fixture
def no_trace_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate keeps a process's first settings: what a trainer chooses here is not to bind the other tests."""
    for state in (PartialState, AcceleratorState, GradientState):
        monkeypatch.setattr(state, "_shared_state", {})


REWARDS = [0.0, 1.0, 0.25, 0.0, 1.0, 1.0, 1.0, 1.0]


def advantages_of(trainer: type, config: type, folder: Path, tmp_path: Path, **settings: Any) -> Tensor:
    """What a real trainer makes of `REWARDS`, four completions of two prompts."""
    datasets = pytest.importorskip("datasets", reason="trl reads its prompts from it")
    loaded = lm.load(folder)
    args = config(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=3,
        bf16=False,
        report_to=[],
        **settings,
    )
    rows = [{"prompt": "def f(x):\n"}] * 4 + [{"prompt": "# sort"}] * 4
    made = trainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        reward_funcs=lambda prompts, completions, **kwargs: REWARDS,
        train_dataset=datasets.Dataset.from_list(rows),
        args=args,
    )
    found: Tensor = made._generate_and_score_completions(rows)["advantages"].cpu()
    return found


@pytest.mark.usefixtures("no_trace_of_the_trainer")
@pytest.mark.parametrize(("scale", "standardized"), [("group", True), ("none", False)])
def test_group_advantages_are_those_of_trl(
    scale: str, standardized: bool, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """With Bessel's correction, which TRL takes and the published runs of this toolkit do not."""
    reward = torch.tensor(REWARDS)
    expected = group_standardized(reward, 4, correction=1) if standardized else group_centered(reward, 4)
    found = advantages_of(trl.GRPOTrainer, trl.GRPOConfig, tiny_model_folder, tmp_path, scale_rewards=scale)
    assert_close(found, expected)


@pytest.mark.usefixtures("no_trace_of_the_trainer")
def test_leave_one_out_is_that_of_trl(tiny_model_folder: Path, tmp_path: Path) -> None:
    found = advantages_of(trl.RLOOTrainer, trl.RLOOConfig, tiny_model_folder, tmp_path, beta=0.0)
    assert_close(found, leave_one_out(torch.tensor(REWARDS), 4))


@given(limit=st.integers(1, 40), data=st.data())
def test_overlong_punishment_is_that_of_trl(limit: int, data: st.DataObject) -> None:
    from trl.rewards import get_soft_overlong_punishment

    buffer = data.draw(st.integers(1, limit))
    lengths = list(range(limit + 1))
    punish = get_soft_overlong_punishment(limit, buffer)
    expected = torch.tensor(punish([[0] * length for length in lengths]))
    assert_close(soft_overlong_punishment(torch.tensor(lengths), max_new_tokens=limit, buffer=buffer), expected)
