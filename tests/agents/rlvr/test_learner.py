"""An update: its gradient against whole sequences of logits, row by row, and programs that the judge rewards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from ra3gym import lm
from ra3gym.agents.mid_training import MStepConfig, distill
from ra3gym.agents.rlvr import RLVRConfig, Scope, algorithm, train
from ra3gym.agents.rlvr.learner import Learner
from ra3gym.agents.rlvr.policy import Policy
from ra3gym.agents.rlvr.rollouts.rollouts import Rollouts, RolloutSettings, TaskOrder, roll_out
from ra3gym.agents.rlvr.rollouts.sampler import ModelSampler
from ra3gym.lm import LoadedModel
from ra3gym.lm.rendering import cut_prompt
from ra3gym.tasks import CodeTask, FunctionTests
from ra3gym.verify import Grader, Judge, Limits

PROMPT = "def f(x):\n"
CHOICES = ("    return x\n", "    return -x\n")
LATENT = lm.latent_token(1)
SAME = CodeTask("choice/same", PROMPT, "f", FunctionTests(((1,), (-2,)), (1, -2)))
MINUS = CodeTask("choice/minus", PROMPT, "f", FunctionTests(((1,), (-2,)), (-1, 2)))
HOPELESS = CodeTask("choice/hopeless", PROMPT, "f", FunctionTests(((1,),), ("no",)))
QUICK = RLVRConfig(steps=50, tasks_per_step=2, group_size=8, learning_rate=1e-2, max_new_tokens=12, min_entropy=0.0)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1, limits=Limits(seconds=2.0, memory_mb=256)) as judge:
        yield judge


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = lm.train_tokenizer([PROMPT + choice for choice in CHOICES], vocab_size=280)
    lm.add_latents(None, tokenizer, 2)
    return tokenizer


@pytest.fixture(scope="module")
def undecided(tokenizer: Any) -> Any:
    """A model that writes each choice, behind a latent, about half of the time."""
    model = lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, max_length=64, seed=0)
    documents = [[*tokenizer.encode(PROMPT + LATENT + choice), tokenizer.eos_token_id] for choice in CHOICES]
    distill(model, documents * 8, MStepConfig(tokens=6000, learning_rate=2e-2, tokens_per_batch=64), seed=0)
    return model


def rollouts_of(prompts: list[list[int]], completions: list[list[int]], rewards: list[float]) -> Rollouts:
    group_size = len(completions) // len(prompts)
    longest = max(map(len, completions))
    return Rollouts(
        tasks=tuple(CodeTask(str(index), "", "f", FunctionTests((), ())) for index in range(len(prompts))),
        group_size=group_size,
        prompts=prompts,
        completions=completions,
        logp_RT=torch.zeros(len(completions), longest),
        texts=[""] * len(completions),
        graded_R=torch.tensor(rewards),
        reward_R=torch.tensor(rewards),
        passed_R=torch.tensor(rewards) > 0,
        finished_R=torch.ones(len(completions), dtype=torch.bool),
        masked_R=torch.zeros(len(completions), dtype=torch.bool),
    )


@pytest.mark.parametrize("aggregation", ["token", "sequence", "length"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_update_has_the_gradient_of_whole_sequences(tokenizer: Any, temperature: float, aggregation: str) -> None:
    """Plain SGD at rate 1 moves the weights by minus the gradient, here taken row by row from all logits."""
    model = lm.tiny_llama(tokenizer, hidden=16, layers=2, heads=2, kv_heads=1, seed=1)
    prompts = [[5, 6, 7, 8], [9]]
    completions = [[10, 11], [12, 13, 14, 0], [15], [16, 17, 18]]
    rewards = [1.0, 0.0, 0.25, 2.25]  # centered in their groups: 0.5, -0.5, -1, 1
    loss = torch.zeros(())
    for row, (completion, advantage) in enumerate(zip(completions, [0.5, -0.5, -1.0, 1.0], strict=True)):
        prompt = prompts[row // 2]
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logp = (logits / temperature).log_softmax(-1)[range(len(completion)), completion]
        share = {"token": 1 / 10, "sequence": 1 / (4 * len(completion)), "length": 1 / (4 * 6)}[aggregation]
        loss = loss - advantage * logp.sum() * share
    expected = torch.autograd.grad(loss, list(model.parameters()))

    def moved(max_grad_norm: float) -> list[torch.Tensor]:
        trained = copy.deepcopy(model)
        policy = Policy(trained)
        config = RLVRConfig(
            group_size=2, temperature=temperature, max_grad_norm=max_grad_norm, max_new_tokens=6, tokens_per_forward=8
        )
        learner = Learner(
            policy,
            torch.optim.SGD(policy.parameters(), lr=1.0),
            Accelerator(cpu=True),
            algorithm("dr_grpo", aggregation=aggregation),
            Scope("all", tokenizer),
            config,
            reference=None,
            allowed_mask_V=None,
            on_policy_logp=True,
        )
        learner.step(rollouts_of(prompts, completions, rewards))
        assert not policy.training
        pairs = zip(model.parameters(), trained.parameters(), strict=True)
        return [(before - after).detach() for before, after in pairs]

    for got, want in zip(moved(1e9), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    clipped = torch.cat([change.flatten() for change in moved(0.01)])
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)


def judged(model: Any, tokenizer: Any, tasks: list[CodeTask], judge: Judge, rows_per_sample: int = 64) -> Rollouts:
    sampler = ModelSampler()
    sampler.update(model)
    settings = RolloutSettings(group_size=32, max_new_tokens=12, temperature=1.0, rows_per_sample=rows_per_sample)
    prompts = [cut_prompt(tokenizer, task.prompt) for task in tasks]
    loaded = lm.LoadedModel(model, tokenizer)
    return roll_out(sampler, loaded, tasks, prompts, range(len(tasks)), Grader(judge), settings)


def test_samples_are_judged_without_their_latents(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    programs = judged(undecided, tokenizer, [SAME, HOPELESS, MINUS], judge)
    passed = [group.float().mean().item() for group in programs.passed_R.view(3, 32)]
    assert passed[1] == 0
    assert 0.2 < passed[0] < 0.8
    assert 0.2 < passed[2] < 0.8
    rows = zip(programs.texts[:32], programs.completions, programs.passed_R.tolist(), strict=False)
    for text, ids, right in rows:
        assert right == (lm.strip_latents(text) == CHOICES[0])
        assert not right or (LATENT in text and ids[-1] == tokenizer.eos_token_id)


def test_rollouts_do_not_depend_on_how_many_are_sampled_at_once(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    tasks = [SAME, HOPELESS, MINUS]
    together, apart = (judged(undecided, tokenizer, tasks, judge, rows) for rows in (96, 32))
    assert together.completions == apart.completions
    torch.testing.assert_close(together.logp_RT, apart.logp_RT, rtol=0, atol=1e-5)


def test_partial_credit(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    """Of two tests, one passes whatever the program returns: x and -x agree on 0."""
    task = CodeTask("choice/half", PROMPT, "f", FunctionTests(((0,), (1,)), (0, 1)))
    verdicts = Grader(judge, reward="score").submit([task] * 2, list(CHOICES)).result()
    assert [(one.reward, one.passed) for one in verdicts] == [(1.0, True), (0.5, False)]


@pytest.mark.parametrize("task", [SAME, MINUS])
def test_rewards_rise(undecided: Any, tokenizer: Any, judge: Judge, task: CodeTask) -> None:
    loaded = LoadedModel(copy.deepcopy(undecided), tokenizer)
    history = train(loaded, [task], config=QUICK, reward=judge).history
    assert [step.step for step in history] == list(range(1, 51))
    assert history[0].pass_rate < 0.8
    assert sum(step.pass_rate for step in history[-10:]) / 10 > 0.9
    assert judged(loaded.model, tokenizer, [task], judge).passed_R.float().mean() > 0.9


def test_nothing_to_learn_changes_nothing(undecided: Any, tokenizer: Any, judge: Judge) -> None:
    model = copy.deepcopy(undecided)
    config = replace(QUICK, steps=3, tasks_per_step=3, group_size=2)
    history = train(LoadedModel(model, tokenizer), [HOPELESS, HOPELESS], config=config, reward=judge).history
    assert [step.reward for step in history] == [0, 0, 0]
    assert [step.grad_norm for step in history] == [0, 0, 0]
    assert all(6 <= step.tokens <= 6 * 12 for step in history)  # three tasks a step though there are two
    for before, after in zip(undecided.parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_a_judge_is_made_where_none_is_given(undecided: Any, tokenizer: Any) -> None:
    config = replace(QUICK, steps=1, tasks_per_step=1)
    (step,) = train(LoadedModel(copy.deepcopy(undecided), tokenizer), [SAME], config=config).history
    assert step.pass_rate > 0


def test_the_order_of_tasks_is_pass_after_pass() -> None:
    order = TaskOrder(5, seed=3)
    passes = [[order[5 * epoch + index] for index in range(5)] for epoch in range(3)]
    assert all(sorted(one) == list(range(5)) for one in passes)
    assert passes[0] != passes[1]
    assert [TaskOrder(5, seed=3)[7], TaskOrder(5, seed=4)[7]] == [passes[1][2], TaskOrder(5, seed=4)[7]]
