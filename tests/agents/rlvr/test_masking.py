"""Rows that nothing is learned from: programs without a reward, and programs that the length limit cut off."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from ra3gym.agents.rlvr import RLVRConfig, RLVRStep, Scope, algorithm, train
from ra3gym.agents.rlvr.algorithms.scope import Marks
from ra3gym.agents.rlvr.health import TooFewRewards
from ra3gym.agents.rlvr.learner import Learner
from ra3gym.agents.rlvr.policy import Policy
from ra3gym.agents.rlvr.rollouts.rollouts import Rollouts
from ra3gym.errors import ConfigError
from ra3gym.tasks import CodeTask
from ra3gym.verify import Graded
from tests.agents.rlvr.bandits import QUICK, TASKS, allowed, tiny, writes_an_a

NAN = float("nan")


def rollouts_of(
    graded: list[float], *, shaping: list[float] | None = None, masked: list[bool] | None = None
) -> Rollouts:
    """Two groups of the given grades."""
    graded_R = torch.tensor(graded, dtype=torch.float32)
    masked_R = graded_R.isnan() if masked is None else torch.tensor(masked)
    rows = len(graded)
    return Rollouts(
        tasks=tuple(TASKS[:2]),
        group_size=rows // 2,
        prompts=[[1], [2]],
        completions=[[3]] * rows,
        logp_RT=torch.zeros(rows, 1),
        texts=[""] * rows,
        graded_R=graded_R,
        reward_R=graded_R if shaping is None else graded_R + torch.tensor(shaping),
        passed_R=graded_R > 0.5,
        finished_R=~masked_R,
        masked_R=masked_R,
    )


def test_a_group_informs_by_its_grades_not_by_its_shaping() -> None:
    """DAPO's dynamic sampling looks at accuracy: programs that are all right differ in length at most."""
    assert rollouts_of([1, 1, 1, 0], shaping=[0, -0.5, 0, 0]).informative == [1]
    assert rollouts_of([1, 1, 0, 0], shaping=[0, -0.5, 0, -1]).informative == []
    assert rollouts_of([1, 0, 1, 0], shaping=[-1, 0, 0, 0]).informative == [0, 1]


def test_masked_rows_neither_inform_nor_move_the_mean() -> None:
    rollouts = rollouts_of([1, 0, NAN, 0, 0, NAN])
    assert rollouts.informative == [0]
    assert rollouts.neutral_rewards().tolist() == [1, 0, 0.5, 0, 0, 0]
    assert rollouts.ungraded == ("bandit/0", "bandit/1")
    assert rollouts_of([NAN, NAN, 1, 0]).informative == [1]
    assert rollouts_of([NAN, NAN, 1, 0]).neutral_rewards().tolist() == [0, 0, 1, 0]
    cut_off = rollouts_of([1, 0, 1, 1], masked=[False, True, False, False])
    assert cut_off.informative == []
    assert cut_off.ungraded == ()


def test_masked_rows_have_no_decisions() -> None:
    marks = Marks(torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3), torch.ones(2, 3))
    kept = marks.without(torch.tensor([True, False]))
    for tensor in (kept.acts_RT, kept.weight_RT, kept.duration_RT):
        assert tensor.tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo", "dapo"])
@pytest.mark.parametrize("wrong", ["raises", None, NAN, float("inf")])
def test_a_program_without_a_reward_is_left_out_and_counted(name: str, wrong: Any) -> None:
    calls = 0

    def now_and_then(task: CodeTask, text: str) -> Any:
        nonlocal calls
        calls += 1
        if calls % 8 != 3:
            return writes_an_a(task, text)
        if wrong == "raises":
            raise KeyError("no such test")
        return wrong

    loaded = tiny()
    chosen = algorithm(name, overlong_buffer=0, dynamic_sampling=False)
    run: dict[str, Any] = {"algorithm": chosen, "config": QUICK, "reward": now_and_then}
    if wrong == "raises":
        with pytest.warns(UserWarning, match=r"the reward raised KeyError: 'no such test' for .* task 'bandit/\d'"):
            history = train(loaded, TASKS, **run).history
    else:
        history = train(loaded, TASKS, **run).history
    assert [step.ungraded for step in history] == [1 / 8] * 4
    assert all(0 <= step.reward <= 1 for step in history)
    assert any(step.grad_norm > 0 for step in history)
    assert all(weight.isfinite().all() for weight in loaded.model.parameters())


@pytest.mark.parametrize("advantage", ["group_centered", "leave_one_out", "return", "batch_normalized"])
def test_a_masked_row_changes_the_update_as_if_it_had_not_been_sampled(advantage: str) -> None:
    def updated(completions: list[list[int]], graded: list[float]) -> list[torch.Tensor]:
        loaded = tiny()
        policy = Policy(loaded.model)
        learner = Learner(
            policy,
            torch.optim.SGD(policy.parameters(), lr=1.0),
            Accelerator(cpu=True),
            algorithm("dr_grpo", advantage=advantage, aggregation="token"),
            Scope("all", loaded.tokenizer),
            replace(QUICK, tokens_per_forward=4096, max_grad_norm=1e9),
            reference=None,
            allowed_mask_V=None,
            on_policy_logp=True,
        )
        rollouts = replace(rollouts_of(graded), completions=completions, logp_RT=torch.zeros(len(graded), 3))
        metrics = learner.step(rollouts)
        assert metrics.grad_norm > 0
        return [weight.detach() for weight in policy.parameters()]

    kept = [[3, 4], [5], [6, 7, 8], [9, 10]]
    masked = updated([*kept[:2], [11, 12, 13], *kept[2:], [14]], [1, 0, NAN, 0.25, 0.5, NAN])
    without = updated(kept, [1, 0, 0.25, 0.5])
    scale = {"leave_one_out": 3 / 4}.get(advantage, 1.0)  # a neutral row widens the others' mean, by n^2 - 1 to n^2
    before = [weight.detach() for weight in tiny().model.parameters()]
    for start, ours, theirs in zip(before, masked, without, strict=True):
        torch.testing.assert_close(ours - start, (theirs - start) * scale, rtol=1e-4, atol=1e-6)


def test_too_many_programs_without_a_reward_stop_the_run() -> None:
    def never(task: CodeTask, text: str) -> float:
        return NAN

    with pytest.raises(TooFewRewards, match=r"step 1: 8 of 8 .* max_ungraded=0.25 .* task 'bandit/\d'.*finite numbers"):
        train(tiny(), TASKS, config=QUICK, reward=never)
    assert train(tiny(), TASKS, config=replace(QUICK, max_ungraded=1.0), reward=never).finished
    with pytest.raises(ConfigError, match="max_ungraded=2"):
        replace(QUICK, max_ungraded=2)


def test_a_judge_that_fails_is_no_missing_reward() -> None:
    class Broken:
        def submit(self, tasks: Any, texts: Any) -> Future[list[Graded]]:
            raise RuntimeError("no workers")

    with pytest.raises(RuntimeError, match="no workers"):
        train(tiny(), TASKS, config=QUICK, reward=Broken())


def cut_off_run(truncated: Any) -> RLVRStep:
    """One step in which some completions end and some are cut off, and every program gets 1."""
    loaded = tiny()
    config = replace(QUICK, steps=1, group_size=16, max_new_tokens=2, truncated=truncated)
    mask_V = allowed(loaded, "a")
    return train(loaded, TASKS, config=config, reward=lambda task, text: 1.0, allowed_mask_V=mask_V).history[0]


def test_what_becomes_of_programs_that_are_cut_off() -> None:
    graded, failed, masked = map(cut_off_run, ("graded", "failed", "masked"))
    assert 0 < graded.truncated < 1
    assert graded.truncated == failed.truncated == masked.truncated
    assert graded.pass_rate == masked.pass_rate == 1.0
    assert graded.informative == masked.informative == 0.0
    assert failed.pass_rate == failed.reward == pytest.approx(1.0 - failed.truncated)
    assert failed.informative > 0
    assert failed.grad_norm > 0
    assert graded.grad_norm == masked.grad_norm == 0.0
    with pytest.raises(ConfigError, match="truncated='dropped'"):
        RLVRConfig(truncated="dropped")  # type: ignore[arg-type]


def test_dapo_counts_no_group_as_informative_whose_programs_are_all_right() -> None:
    loaded = tiny()
    config = replace(QUICK, steps=1, group_size=16, max_resamples=0)
    step = train(loaded, TASKS, algorithm="dapo", config=config, reward=lambda task, text: 1.0).history[0]
    assert step.reward < 1.0, "some are punished for their length"
    assert step.informative == 0.0
