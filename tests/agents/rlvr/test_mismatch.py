"""Samplers whose arithmetic is not the trainer's: what is corrected, and what is logged."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from ra3gym import lm
from ra3gym.agents.rlvr import Algorithm, Scope, algorithm, algorithm_names, train
from ra3gym.agents.rlvr.algorithms.kl import kl_k1
from ra3gym.agents.rlvr.learner import Learner
from ra3gym.agents.rlvr.measures import UpdateMetrics
from ra3gym.agents.rlvr.policy import Policy, ScoreRequest
from ra3gym.agents.rlvr.rollouts.rollouts import Rollouts
from ra3gym.agents.rlvr.rollouts.sampler import ModelSampler
from ra3gym.lm.model import cast_weights
from tests.agents.rlvr.bandits import QUICK, TASKS, allowed, tiny, writes_an_a

PROMPTS = [[1, 5], [2]]
COMPLETIONS = [[3, 4], [5], [6, 7, 8], [9, 10]]


def scores(policy: Policy) -> torch.Tensor:
    """The policy's own log-probabilities of the completions, (4, 3)."""
    with torch.no_grad():
        return policy(ScoreRequest(PROMPTS, COMPLETIONS, [0, 0, 1, 1], 1.0)).logp_RT


def step(
    chosen: Algorithm, gap_RT: torch.Tensor, rewards: list[float], *, on_policy: bool, reference: Policy | None = None
) -> tuple[UpdateMetrics, list[torch.Tensor]]:
    """One step of SGD on rollouts whose sampler is `gap_RT` nats above the policy; its metrics, and the weights."""
    loaded = tiny()
    policy = Policy(loaded.model)
    learner = Learner(
        policy,
        torch.optim.SGD(policy.parameters(), lr=1.0),
        Accelerator(cpu=True),
        chosen,
        Scope("all", loaded.tokenizer),
        replace(QUICK, tokens_per_forward=4096, max_grad_norm=1e9),
        reference=reference,
        allowed_mask_V=None,
        on_policy_logp=on_policy,
    )
    rewards_R = torch.tensor(rewards)
    rollouts = Rollouts(
        tasks=tuple(TASKS[:2]),
        group_size=2,
        prompts=PROMPTS,
        completions=COMPLETIONS,
        logp_RT=scores(policy) + gap_RT,
        texts=[""] * 4,
        graded_R=rewards_R,
        reward_R=rewards_R,
        passed_R=rewards_R > 0.5,
        finished_R=torch.ones(4, dtype=torch.bool),
        masked_R=torch.zeros(4, dtype=torch.bool),
    )
    return learner.step(rollouts), [weight.detach() for weight in policy.parameters()]


GAP_RT = torch.tensor([[0.1, -0.9, 0.0], [0.2, 0.0, 0.0], [-0.3, 0.0, 0.1], [-1.0, 0.4, 0.0]])


@pytest.mark.parametrize("updates", [1, 2])
def test_the_mismatch_is_logged(updates: int) -> None:
    chosen = algorithm("grpo", updates_per_batch=updates)
    metrics, _ = step(chosen, GAP_RT, [1.0, 0.0, 0.0, 1.0], on_policy=False)
    gaps = [0.1, 0.9, 0.2, 0.3, 0.0, 0.1, 1.0, 0.4]
    assert metrics.mismatch == pytest.approx(sum(gaps) / 8, abs=1e-5)
    assert metrics.mismatch_max == pytest.approx(1.0, abs=1e-5)
    assert metrics.mismatch_cut == pytest.approx(2 / 8), "e^.9 and e^1 are above the cap of 2"
    metrics, _ = step(chosen, torch.zeros(4, 3), [1.0, 0.0, 0.0, 1.0], on_policy=True)
    assert metrics.mismatch is metrics.mismatch_max is metrics.mismatch_cut is None


def test_every_algorithm_corrects_by_default() -> None:
    assert {algorithm(name).off_policy_cap for name in algorithm_names()} >= {2.0}
    rewards = [1.0, 0.0, 0.0, 1.0]
    _, corrected = step(algorithm("grpo"), GAP_RT, rewards, on_policy=False)
    _, plain = step(algorithm("grpo", off_policy_cap=None), GAP_RT, rewards, on_policy=False)
    _, own = step(algorithm("grpo"), GAP_RT, rewards, on_policy=True)
    assert any(not torch.equal(one, other) for one, other in zip(corrected, plain, strict=True))
    for one, other in zip(plain, own, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)  # on-policy, nothing is corrected


def test_old_log_probabilities_are_the_trainers_own() -> None:
    """At a learning rate of nothing no ratio moves, so nothing is clipped, whatever the sampler's numbers are."""
    chosen = algorithm("gspo", minibatches=2)
    loaded = tiny()
    config = replace(QUICK, steps=2, learning_rate=1e-12, precision="bfloat16", group_size=8)
    history = train(loaded, TASKS, algorithm=chosen, config=config, reward=writes_an_a).history
    assert [step.clip_fraction for step in history] == [0.0, 0.0]
    assert all(step.mismatch is not None and 0 < step.mismatch < 0.1 for step in history)
    assert all(step.mismatch_cut == 0.0 for step in history)


def test_a_sampler_in_float32_has_the_trainers_arithmetic() -> None:
    history = train(tiny(), TASKS, config=replace(QUICK, steps=1), reward=writes_an_a).history
    assert history[0].mismatch is None
    assert ModelSampler().on_policy_logp
    assert not ModelSampler(torch.bfloat16).on_policy_logp


def test_a_sampler_in_bfloat16_keeps_the_frequencies_of_its_positions() -> None:
    model: Any = tiny(heads=1).model
    sampler = ModelSampler(torch.bfloat16)
    sampler.update(model)
    copied: Any = sampler._model
    assert copied.dtype == torch.bfloat16
    assert torch.equal(copied.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert copied.lm_head.weight.dtype == torch.bfloat16
    tied: Any = copy.deepcopy(model)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    assert cast_weights(tied, torch.bfloat16).lm_head.weight is tied.model.embed_tokens.weight


def reference_policy() -> Policy:
    other = tiny(seed=1)
    return Policy(other.model).eval()


def test_a_kl_in_the_reward_is_the_mean_over_all_decisions() -> None:
    """Rows without advantage are in the sum as they are in the divisor."""
    chosen = algorithm("rloo", kl_coefficient=1e-9)
    reference = reference_policy()
    mask_RT = torch.arange(3) < torch.tensor([[len(ids)] for ids in COMPLETIONS])
    expected = kl_k1(scores(Policy(tiny().model)), scores(reference))[mask_RT].mean()
    for gap_RT, on_policy in ((torch.zeros(4, 3), True), (GAP_RT, False)):
        metrics, _ = step(chosen, gap_RT, [0.5, 0.5, 0.0, 1.0], on_policy=on_policy, reference=reference)
        assert metrics.kl == pytest.approx(float(expected), abs=1e-5)


def test_a_whole_run_logs_its_kl_and_mismatch() -> None:
    loaded = tiny()
    chosen = algorithm("grpo", kl_coefficient=0.1)
    config = replace(QUICK, precision="bfloat16")
    history = train(
        loaded, TASKS, algorithm=chosen, config=config, reward=writes_an_a, allowed_mask_V=allowed(loaded, "a", "b")
    ).history
    assert all(step.kl is not None and step.mismatch_max is not None for step in history)
    assert lm.latent_ids(loaded.tokenizer)
