"""Training on documents: deterministic, for a given number of tokens, and it learns."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from ra3gym import lm
from ra3gym.agents.mid_training import MStepConfig, distill
from ra3gym.agents.mid_training.m_step import MStepProgress, Optimizer
from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.tasks import ExpertTrace

OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
SMALL = MStepConfig(tokens=3000, learning_rate=1e-2, tokens_per_batch=300)


@pytest.fixture(scope="module")
def documents(tokenizer: Any, traces: list[ExpertTrace]) -> list[list[int]]:
    end = tokenizer.eos_token_id
    return [[*tokenizer.encode(trace.task.canonical_program), end] for trace in traces[:60]]


@pytest.fixture(scope="module")
def fresh_model(tokenizer: Any) -> Any:
    return lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, seed=0)


def trained(
    model: Any, documents: list[list[int]], config: MStepConfig = SMALL, seed: int = 0
) -> tuple[Any, list[MStepProgress]]:
    model = copy.deepcopy(model)
    course: list[MStepProgress] = []
    seen = distill(model, documents, config, seed=seed, on_progress=course.append)
    assert seen == course[-1].tokens
    return model, course


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_seed_decides(fresh_model: Any, documents: list[list[int]], optimizer: Optimizer) -> None:
    config = replace(SMALL, optimizer=optimizer)
    torch.manual_seed(1)
    first, course = trained(fresh_model, documents, config)
    torch.manual_seed(2)
    again, same_course = trained(fresh_model, documents, config)
    other, _ = trained(fresh_model, documents, config, seed=1)
    assert course == same_course
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert not first.training


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loss_falls(fresh_model: Any, documents: list[list[int]], optimizer: Optimizer) -> None:
    config = replace(SMALL, tokens=16_000, optimizer=optimizer)
    model, course = trained(fresh_model, documents, config)
    assert course[0].loss > 5.0
    assert course[-1].loss < 3.6
    packed = lm.pack(documents, 512)
    with torch.no_grad():
        losses = [loss / count for loss, count in (lm.training_loss(m, packed) for m in (fresh_model, model))]
    assert losses[1] < 0.6 * losses[0]


@pytest.mark.parametrize("tokens", [300, 1000, 4321])
def test_the_budget_is_in_tokens(fresh_model: Any, documents: list[list[int]], tokens: int) -> None:
    longest = max(map(len, documents))
    _, course = trained(fresh_model, documents, MStepConfig(tokens=tokens, tokens_per_batch=300))
    counts = [progress.tokens for progress in course]
    steps = [b - a for a, b in zip([0, *counts], counts, strict=False)]
    assert counts[-2:-1] < [tokens] <= counts[-1:], "it stops at the first batch that reaches the budget"
    assert all(0 < step <= 300 + longest for step in steps)


def test_documents_are_passed_over_as_often_as_the_budget_asks(fresh_model: Any) -> None:
    documents = [[5, 10, 20, 30, 2], [6, 11, 21, 31, 2]]
    _, course = trained(fresh_model, documents, MStepConfig(tokens=800, learning_rate=2e-2, tokens_per_batch=10))
    assert len(course) >= 80
    assert course[-1].loss < 0.1


def first_move(model: Any, documents: list[list[int]], config: MStepConfig) -> dict[str, float]:
    """How far the first step moves the weights at most, by parameter."""
    trained = copy.deepcopy(model)
    moved: dict[str, float] = {}

    class Stop(Exception):
        pass

    def stop(progress: MStepProgress) -> None:
        for (name, before), after in zip(model.named_parameters(), trained.parameters(), strict=True):
            moved[name] = (after - before).abs().max().item()
        raise Stop

    with pytest.raises(Stop):
        distill(trained, documents, config, seed=0, on_progress=stop)
    return moved


def test_the_learning_rates_warm_up(fresh_model: Any, documents: list[list[int]]) -> None:
    """AdamW first moves a weight by about its rate, which begins at a 25th of the peak; so does Muon, at most."""
    config = MStepConfig(tokens=100_000, learning_rate=1e-2, matrix_learning_rate=1e-4, tokens_per_batch=300)
    adamw = first_move(fresh_model, documents, replace(config, optimizer="adamw", weight_decay=0.0))
    assert adamw == {name: pytest.approx(1e-2 * 0.002 / 0.05, rel=0.02) for name in adamw}
    muon = first_move(fresh_model, documents, replace(config, optimizer="muon", weight_decay=0.0))
    matrices = {name for name in muon if "proj" in name}
    assert all((muon[name] < 0.1 * adamw[name]) == (name in matrices) for name in muon)
    assert all(muon[name] > 0 for name in matrices)


def test_no_documents(fresh_model: Any) -> None:
    with pytest.raises(DataError, match="no documents to train on"):
        distill(fresh_model, [], SMALL, seed=0)


def test_a_batch_must_hold_the_longest_document(fresh_model: Any, documents: list[list[int]]) -> None:
    config = MStepConfig(tokens=100, tokens_per_batch=8)
    with pytest.raises(
        ConfigError, match=r"tokens_per_batch=8 must hold .* of the 60 sequences, which has \d+ tokens: give at"
    ):
        distill(fresh_model, documents, config, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 299, "tokens_per_batch": 300}, "tokens=299 is smaller than one batch .tokens_per_batch=300."),
        ({"tokens_per_batch": 0}, "tokens_per_batch=0"),
        ({"learning_rate": 0.0}, " learning_rate=0.0"),
        ({"matrix_learning_rate": 0.0}, "matrix_learning_rate=0.0"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MStepConfig(**options)


def test_an_unknown_optimizer() -> None:
    with pytest.raises(UnknownNameError, match="unknown optimizer 'sgd'; known: adamw, muon"):
        MStepConfig(optimizer="sgd")
