"""The E-step on rationales: its arithmetic by hand, its gradient, and that it learns to comment where it pays."""

from __future__ import annotations

import ast
import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ra3gym import lm
from ra3gym.agents.mid_training import MStepConfig, distill
from ra3gym.agents.mid_training.rationale import (
    RationaleConfig,
    RationaleStep,
    annotate,
    brite_config,
    train_rationales,
)
from ra3gym.agents.mid_training.rationale.layout import lay_out
from ra3gym.agents.mid_training.rationale.rewards import rewards_to_go, step_rewards
from ra3gym.agents.mid_training.rationale.rollouts import CommentPolicy
from ra3gym.agents.mid_training.rationale.rows import assemble
from ra3gym.agents.mid_training.rationale.scoring import expert_logp
from ra3gym.agents.mid_training.rationale.training import advantages, sample_group, update
from ra3gym.agents.mid_training.rationale.vocabulary import Comment, comment_vocabulary
from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests

PROMPT = "def f(x):\n"
UP, DOWN = "    return x + 1\n", "    return x - 1\n"


def trace_of(body: str, prompt: str = PROMPT) -> ExpertTrace:
    task = CodeTask("tests/f", prompt, "f", FunctionTests(((1,),), (2,)), body)
    return ExpertTrace(task, tuple(body.splitlines(keepends=True)))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return lm.train_tokenizer([f"{PROMPT}    # up\n{UP}    # down\n{DOWN}"] * 4, vocab_size=290)


@pytest.fixture(scope="module")
def planted(tokenizer: Any) -> Any:
    """Half of its programs have a comment that says whether they go up or down: three of four that go down.

    Of those without a comment three of four go up. So a comment makes DOWN likely, and only if it is the right one.
    """
    texts = [*[UP] * 3, DOWN, f"    # up\n{UP}", *[f"    # down\n{DOWN}"] * 3]
    documents = [[*tokenizer.encode(PROMPT + text), tokenizer.eos_token_id] for text in texts]
    model = lm.tiny_llama(tokenizer, hidden=32, layers=2, heads=2, max_length=64, seed=0)
    distill(model, documents * 6, MStepConfig(tokens=16_000, learning_rate=1e-2, tokens_per_batch=128), seed=0)
    return model


QUICK = RationaleConfig(max_latent_tokens=6, steps=40, traces_per_step=1, group_size=16, learning_rate=3e-3)


def test_rewards_by_hand() -> None:
    logp_GQ = torch.tensor([[-2.0, -6.0], [-4.0, -3.0]])
    tokens_Q = torch.tensor([2, 6])
    thinks_GQ = torch.tensor([[True, False], [True, True]])
    failed_GQ = torch.tensor([[False, False], [True, False]])

    def rewards(normalize: Any) -> torch.Tensor:
        config = RationaleConfig(normalize=normalize, switch_penalty=0.25, format_penalty=0.5)
        return step_rewards(logp_GQ, tokens_Q, thinks_GQ, failed_GQ, config)

    torch.testing.assert_close(rewards("token"), torch.tensor([[-1.25, -1.0], [-2.75, -0.75]]))
    torch.testing.assert_close(rewards("line"), torch.tensor([[-0.75, -1.5], [-1.75, -1.0]]))
    torch.testing.assert_close(rewards("none"), torch.tensor([[-2.25, -6.0], [-4.75, -3.25]]))


def test_returns_and_advantages_by_hand() -> None:
    reward_GQ = torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 1.0, 0.0, 1.0], [3.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        rewards_to_go(reward_GQ, None), torch.tensor([[15.0, 14, 12, 8], [2, 2, 1, 1], [3, 0, 0, 0]])
    )
    torch.testing.assert_close(rewards_to_go(reward_GQ, 2), torch.tensor([[3.0, 6, 12, 8], [1, 1, 1, 1], [3, 0, 0, 0]]))
    torch.testing.assert_close(rewards_to_go(reward_GQ, 1), reward_GQ)
    torch.testing.assert_close(rewards_to_go(reward_GQ, 9), rewards_to_go(reward_GQ, None))
    advantage_GQ = advantages(torch.tensor([[15.0, 14], [2, 2], [3, 0]]), 1)
    torch.testing.assert_close(advantage_GQ, torch.tensor([[12.5, 13], [-7, -5], [-5.5, -8]]))


@given(st.lists(st.lists(st.integers(-8, 8), min_size=5, max_size=5), min_size=2, max_size=5), st.integers(1, 7))
def test_returns_satisfy_their_recursion(rewards: list[list[int]], horizon: int) -> None:
    reward_GQ = torch.tensor(rewards, dtype=torch.float32)
    windows = torch.stack([reward_GQ[:, t : t + horizon].sum(1) for t in range(5)], dim=1)
    torch.testing.assert_close(rewards_to_go(reward_GQ, horizon), windows)
    torch.testing.assert_close(advantages(reward_GQ, horizon).sum(0), torch.zeros(5))


def test_the_update_has_the_gradient_of_the_stated_loss(tokenizer: Any, planted: Any) -> None:
    """Plain SGD at rate 1, against the loss written out from whole sequences of logits, action by action."""
    config = RationaleConfig(max_latent_tokens=4, group_size=4, horizon=1, max_grad_norm=1e9, temperature=0.8)
    model = copy.deepcopy(planted)
    vocabulary = comment_vocabulary(tokenizer, model)
    layout = lay_out(tokenizer, trace_of(UP))
    policy = CommentPolicy(model, vocabulary, config)
    group = sample_group(policy, planted, layout, torch.Generator().manual_seed(4))
    (place,) = layout.places
    assert {(True,), (False,)} <= {row.thinks for row in group.rows}
    total, num_actions = torch.zeros(()), 0
    for (comment,), row, advantage in zip(
        group.comments, group.rows, advantages(group.reward_GQ, 1)[:, 0], strict=True
    ):
        ids = torch.tensor([[*layout.prefix_ids, *row.ids]])
        logits = model(ids, use_cache=False).logits[0, len(layout.prefix_ids) - 1 :] / 0.8
        pair = logits[place.split, [place.starter, place.act_ids[place.split]]].log_softmax(0)
        actions = [pair[0 if comment else 1]]
        if comment:
            written = (logits + torch.where(vocabulary.allowed_V, 0.0, -torch.inf)).log_softmax(-1)
            at = place.split + 1
            actions += [written[at + i, token] for i, token in enumerate(comment.ids)]
            if comment.ended:
                actions.append(written[at + len(comment.ids)][vocabulary.stop_V].logsumexp(0))
        total = total - advantage * torch.stack(actions).sum()
        num_actions += len(actions)
    expected = torch.autograd.grad(total / num_actions, list(model.parameters()))
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
    assert update(replace(policy, model=trained), planted, optimizer, [group]) == 0
    for before, after, want in zip(model.parameters(), trained.parameters(), expected, strict=True):
        torch.testing.assert_close((before - after).detach(), want, atol=2e-5, rtol=1e-3)


def mean_of(history: list[RationaleStep], name: str) -> float:
    return sum(getattr(step, name) for step in history) / len(history)


def test_it_learns_the_comment_that_makes_the_next_line_likely(tokenizer: Any, planted: Any) -> None:
    model = copy.deepcopy(planted)
    history = train_rationales(model, tokenizer, [trace_of(DOWN)], QUICK, seed=0)
    assert [step.step for step in history] == list(range(1, 41))
    first, last = history[:5], history[-5:]
    assert mean_of(last, "reward") > mean_of(first, "reward") + 0.03
    assert mean_of(last, "think_rate") > 0.9 > mean_of(first, "think_rate")
    assert mean_of(last, "format_failures") < 0.05
    assert mean_of(last, "logp") > mean_of(last, "logp_without") + 1.0
    for annotated in annotate(model, tokenizer, trace_of(DOWN), QUICK, torch.Generator().manual_seed(1))[:4]:
        assert annotated.text == f"{PROMPT}    # down\n{DOWN}"


def test_a_high_cost_of_thinking_gives_next_token_prediction(tokenizer: Any, planted: Any) -> None:
    """The limit c -> inf: no comments, and the likelihood that the model has without any."""
    model = copy.deepcopy(planted)
    config = replace(QUICK, switch_penalty=10.0)
    history = train_rationales(model, tokenizer, [trace_of(UP)], config, seed=0)
    assert mean_of(history[-3:], "think_rate") < 0.05
    assert history[-1].logp == pytest.approx(history[-1].logp_without, abs=0.1)
    annotated = annotate(model, tokenizer, trace_of(UP), QUICK, torch.Generator().manual_seed(1))[0]
    assert annotated.text == PROMPT + UP


def test_a_share_of_decisions_thinks_all_the_same(tokenizer: Any, planted: Any) -> None:
    """Where thinking never pays, `min_think` keeps it alive in training and leaves annotations alone."""
    model = copy.deepcopy(planted)
    config = replace(QUICK, switch_penalty=10.0, min_think=0.25, group_size=32)
    history = train_rationales(model, tokenizer, [trace_of(DOWN)], config, seed=0)
    assert 0.15 < mean_of(history[-10:], "think_rate") < 0.35
    group = annotate(model, tokenizer, trace_of(DOWN), config, torch.Generator().manual_seed(1))
    assert sum(annotated.text == PROMPT + DOWN for annotated in group) >= 28


def test_brite_comments_each_line_and_judges_it_alone(tokenizer: Any, planted: Any) -> None:
    config = brite_config(QUICK)
    assert (config.horizon, config.always_think, config.group_size) == (1, True, QUICK.group_size)
    trace = trace_of(UP.replace("return", "x =") + UP)
    for annotated in annotate(planted, tokenizer, trace, config, torch.Generator().manual_seed(0)):
        assert annotated.places == (0, 1)
        assert all(
            tokens > 0 or failed for tokens, failed in zip(annotated.latent_tokens, annotated.failed, strict=True)
        )
    model = copy.deepcopy(planted)
    history = train_rationales(model, tokenizer, [trace_of(DOWN)], config, seed=0)
    assert {step.think_rate for step in history} == {1.0}
    assert mean_of(history[-5:], "reward") > history[0].reward + 0.1


def test_annotations_are_comment_only_and_add_up(tokenizer: Any, planted: Any) -> None:
    trace = trace_of("    y = (\n        x)\n\n    return y + 1\n")
    config = RationaleConfig(max_latent_tokens=8, group_size=32, switch_penalty=0.125, normalize="none")
    group = annotate(planted, tokenizer, trace, config, torch.Generator().manual_seed(0))
    assert len(group) == 32
    assert any(comment for annotated in group for comment in annotated.comments)
    for annotated in group:
        assert ast.dump(ast.parse(annotated.text)) == ast.dump(ast.parse(PROMPT + "".join(trace.steps)))
        assert annotated.places == (0, 1, 3)
        assert annotated.reward == pytest.approx(sum(annotated.rewards) / 3)
        for place, tokens, failed, logp, reward in zip(
            annotated.places,
            annotated.latent_tokens,
            annotated.failed,
            annotated.logp,
            annotated.rewards,
            strict=True,
        ):
            assert tokens <= 8
            if tokens or failed:
                assert reward == pytest.approx(logp - 0.125 - 0.5 * failed, abs=1e-4)
            else:
                assert annotated.comments[place] is None
                assert reward == pytest.approx(logp, abs=1e-4)


def test_what_counts_as_a_failure_of_form(tokenizer: Any, planted: Any) -> None:
    vocabulary, (place,) = comment_vocabulary(tokenizer, planted), lay_out(tokenizer, trace_of(UP)).places

    def failed(text: str, ended: bool = True) -> bool:
        return vocabulary.is_malformed(place, Comment(tuple(tokenizer.encode(text)), ended))

    assert not vocabulary.is_malformed(place, None)
    assert [failed(" up"), failed("up"), failed(" up", ended=False)] == [False, False, True]
    assert [failed(""), failed("  # "), failed(" a\u2028b"), failed(" a\0")] == [True, True, True, True]


def test_the_seed_decides(tokenizer: Any, planted: Any) -> None:
    def run(seed: int, **options: Any) -> tuple[list[RationaleStep], torch.Tensor]:
        model = copy.deepcopy(planted)
        config = replace(QUICK, steps=3, group_size=4, traces_per_step=3, **options)
        history = train_rationales(model, tokenizer, [trace_of(UP), trace_of(DOWN)], config, seed=seed)
        return history, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    history, weights = run(0)
    again, same = run(0)
    assert again == history
    assert torch.equal(weights, same)
    assert run(1)[0] != history
    with_kl, tied = run(0, kl=10.0)
    assert with_kl[0].kl == pytest.approx(0, abs=1e-6)  # nothing has moved yet
    assert with_kl[-1].kl > 0
    start = torch.cat([parameter.detach().flatten() for parameter in planted.parameters()])
    assert (weights - start).norm() > 0 < (tied - start).norm()
    assert not torch.equal(tied, weights)
    assert run(0, reward_model="current")[0][0] == history[0]  # the reference is the model at the start


def test_the_reward_model_stays_as_it_was(tokenizer: Any, planted: Any) -> None:
    """With the default, the likelihood without rationales is that of the untrained model, at every step."""
    model = copy.deepcopy(planted)
    history = train_rationales(model, tokenizer, [trace_of(UP)], QUICK, seed=0)
    layout = lay_out(tokenizer, trace_of(UP))
    plain = assemble(layout, [None])
    logp = float(expert_logp(planted, layout, [plain]).sum())
    assert [step.logp_without for step in history] == pytest.approx([logp] * 40, abs=1e-4)
    assert not torch.equal(model.lm_head.weight, planted.lm_head.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "at least 2 rollouts"),
        ({"max_latent_tokens": 0}, "max_latent_tokens=0 must be at least 1"),
        ({"horizon": 0}, "horizon=0"),
        ({"switch_penalty": -0.1}, "switch_penalty=-0.1"),
        ({"switch_penalty": float("nan")}, "switch_penalty=nan"),
        ({"kl": float("inf")}, "kl=inf"),
        ({"min_think": 1.0}, "min_think=1.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_bad_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RationaleConfig(**options)


def test_bad_names_and_traces_are_refused(tokenizer: Any, planted: Any) -> None:
    with pytest.raises(UnknownNameError, match="normalization 'tokens'"):
        RationaleConfig(normalize="tokens")
    with pytest.raises(UnknownNameError, match="reward model"):
        RationaleConfig(reward_model="frozen")
    with pytest.raises(DataError, match="no traces"):
        train_rationales(planted, tokenizer, [], QUICK, seed=0)
    before = copy.deepcopy(planted.state_dict())
    for body, message in ((UP * 20, "'tests/f' may need"), ("    return (\n", "'tests/f': the program does not parse")):
        with pytest.raises(DataError, match=message):
            train_rationales(planted, tokenizer, [trace_of(UP), trace_of(body)], QUICK, seed=0)
    assert all(torch.equal(before[name], value) for name, value in planted.state_dict().items())


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "rationale.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(example.splitlines()) < 25
    exec(compile(example.replace("steps=5", "steps=1, group_size=2"), "docs/rationale.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("RationaleStep(step=1, ")
    assert "def f(" in printed
