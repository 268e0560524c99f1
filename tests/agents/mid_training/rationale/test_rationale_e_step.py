"""Rationales as an E-step: annotations, their documents and controls, and the loop that uses them."""

from __future__ import annotations

import ast
import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ra3gym import lm
from ra3gym.abstractions.latents.comments import find_comments
from ra3gym.agents.mid_training.rationale import RationaleConfig, RationaleEStep, RationaleStep, brite_config
from ra3gym.agents.mid_training.rationale.e_step import METRICS
from ra3gym.agents.mid_training.rationale.layout import lay_out
from ra3gym.errors import ConfigError
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.idioms import IdiomsDomain
from ra3gym.testing import check_e_step

CONFIG = RationaleConfig(group_size=4, steps=0, max_latent_tokens=6)


@pytest.fixture(scope="module")
def traces() -> list[ExpertTrace]:
    return [trace.without_planted() for trace in IdiomsDomain().traces(6)]


@pytest.fixture(scope="module")
def loaded(traces: list[ExpertTrace]) -> lm.LoadedModel:
    """Untrained, with weights large enough for comments to differ."""
    tokenizer = lm.train_tokenizer([trace.task.canonical_program + "# a comment\n" for trace in traces], vocab_size=400)
    model = lm.tiny_llama(tokenizer, hidden=32, layers=2, heads=2, max_length=1024, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return lm.LoadedModel(model, tokenizer)


def infer(loaded: lm.LoadedModel, traces: list[ExpertTrace], config: RationaleConfig = CONFIG, seed: int = 0) -> Any:
    return RationaleEStep(config).for_model(loaded).infer(traces, np.random.default_rng(seed))


def copied(loaded: lm.LoadedModel) -> lm.LoadedModel:
    return lm.LoadedModel(copy.deepcopy(loaded.model), loaded.tokenizer)


def test_it_is_an_e_step(loaded: lm.LoadedModel, traces: list[ExpertTrace]) -> None:
    """The same generator gives the same annotations, and nothing but the model is changed."""
    check_e_step(RationaleEStep(CONFIG).for_model(loaded), traces)
    assert infer(loaded, traces, seed=1).comments != infer(loaded, traces).comments
    with pytest.raises(ConfigError, match="call for_model"):
        RationaleEStep(CONFIG).infer(traces, np.random.default_rng(0))


def test_latents_are_comments_at_the_steps_below_them(loaded: lm.LoadedModel, traces: list[ExpertTrace]) -> None:
    annotations = infer(loaded, traces)
    assert annotations.comments is not None
    assert annotations.comments[0] == ""
    assert len(set(annotations.comments)) == len(annotations.comments) > 10
    assert annotations.names[0] == ()
    for comment, names in zip(annotations.comments[1:], annotations.names[1:], strict=True):
        assert comment == "#" + comment[1:].strip("\n")
        assert list(names) == comment[1:].split()
    for index, (trace, path) in enumerate(zip(traces, annotations.paths, strict=True)):
        marks = annotations.marks(index, trace.steps)
        source = trace.prompt + "".join(trace.steps)
        annotated = trace.prompt + "".join(mark + step for mark, step in zip(marks, trace.steps, strict=True))
        assert ast.dump(ast.parse(annotated)) == ast.dump(ast.parse(source))
        comments = find_comments(annotated, source)
        assert len(comments) == sum(map(bool, marks)) <= sum(path.switches) <= len(comments) + 1


def test_metrics_and_gains_describe_the_annotations(loaded: lm.LoadedModel, traces: list[ExpertTrace]) -> None:
    config = replace(CONFIG, normalise="none", switch_penalty=0.5)
    found = infer(loaded, traces, config)
    assert set(found.metrics) == {*METRICS, "seconds"}
    assert found.gains is not None
    num_places = sum(len(lay_out(loaded.tokenizer, trace).places) for trace in traces)
    gain = sum(map(sum, found.gains)) / num_places
    assert gain == pytest.approx(found.metrics["logp"] - found.metrics["logp_without"], abs=1e-4)
    cost = 0.5 * found.metrics["think_rate"]
    assert found.metrics["reward"] == pytest.approx(found.metrics["logp"] - cost, abs=1e-4)
    assert found.metrics["latent_tokens"] > 0
    assert found.metrics["kl"] == 0


def test_it_trains_the_model_before_it_annotates(loaded: lm.LoadedModel, traces: list[ExpertTrace]) -> None:
    steps: list[RationaleStep] = []
    model = copied(loaded)
    config = replace(CONFIG, steps=2, learning_rate=1e-2, traces_per_step=2)
    found = RationaleEStep(config, on_step=steps.append).for_model(model).infer(traces, np.random.default_rng(0))
    assert [step.step for step in steps] == [1, 2]
    assert not torch.equal(model.model.lm_head.weight, loaded.model.lm_head.weight)
    assert found.metrics["kl"] > 0
    again = copied(loaded)
    assert infer(again, traces, config).paths == found.paths
    assert torch.equal(model.model.lm_head.weight, again.model.lm_head.weight)


def test_brite_comments_every_place(loaded: lm.LoadedModel, traces: list[ExpertTrace]) -> None:
    """Only a comment without text is left out."""
    config = replace(brite_config(CONFIG), group_size=16, format_penalty=10.0)
    annotations = infer(loaded, traces[:2], config)
    assert annotations.comments is not None
    for index, trace in enumerate(traces[:2]):
        commented = [step for step, mark in enumerate(annotations.marks(index, trace.steps)) if mark]
        assert commented == [place.step for place in lay_out(loaded.tokenizer, trace).places]
    assert annotations.metrics["think_rate"] == 1.0
