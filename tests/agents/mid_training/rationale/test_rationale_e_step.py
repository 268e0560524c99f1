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
from ra3gym.abstractions.latents import Annotations, LatentPath
from ra3gym.abstractions.latents.comments import check_comment_only, find_comments
from ra3gym.abstractions.latents.controls import shuffled
from ra3gym.abstractions.latents.document import DocumentWriter
from ra3gym.agents import mid_training
from ra3gym.agents.mid_training.e_steps.registry import make_e_step
from ra3gym.agents.mid_training.rationale import RationaleConfig, RationaleEStep, RationaleStep, brite_config
from ra3gym.agents.mid_training.rationale.e_step import METRICS
from ra3gym.agents.mid_training.rationale.layout import lay_out
from ra3gym.agents.mid_training.rationale.rows import assemble
from ra3gym.agents.mid_training.rationale.vocabulary import CommentVocabulary
from ra3gym.agents.mid_training.recipe import write_documents
from ra3gym.errors import ConfigError
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.idioms import IdiomsDomain
from ra3gym.testing import check_e_step
from tests.agents.mid_training.rationale.test_rationale_rollouts import BODY, PROMPT, TOKENIZERS, trace_of

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
        assert list(names) == [word for word in comment[1:].split() if word.isalpha()]
    for index, (trace, path) in enumerate(zip(traces, annotations.paths, strict=True)):
        marks = annotations.marks(index, trace.steps)
        source = trace.prompt + "".join(trace.steps)
        annotated = trace.prompt + "".join(mark + step for mark, step in zip(marks, trace.steps, strict=True))
        assert ast.dump(ast.parse(annotated)) == ast.dump(ast.parse(source))
        comments = find_comments(annotated, source)
        assert len(comments) == sum(map(bool, marks)) <= sum(path.switches) <= len(comments) + 1


def test_metrics_and_gains_describe_the_annotations(loaded: lm.LoadedModel, traces: list[ExpertTrace]) -> None:
    config = replace(CONFIG, normalize="none", switch_penalty=0.5)
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


def test_documents_hold_the_comments_and_the_experts_program(loaded: lm.LoadedModel, traces: list[ExpertTrace]) -> None:
    annotations = infer(loaded, traces)
    documents = write_documents(
        DocumentWriter(loaded.tokenizer), traces, latents=annotations, rng=np.random.default_rng(0)
    )
    for index, (trace, document) in enumerate(zip(traces, documents, strict=True)):
        source = trace.prompt + "".join(trace.steps)
        assert loaded.tokenizer.decode(document.ids[:-1]) == document.text
        assert ast.dump(ast.parse(document.text)) == ast.dump(ast.parse(source))
        comments = list(find_comments(document.text, source).values())
        written = [loaded.tokenizer.decode(document.ids[a:b]).strip() for a, b in document.latent_tokens if b > a]
        assert written == comments
        assert annotations.paths[index] == document.path


def test_shuffled_comments_are_a_control(loaded: lm.LoadedModel, traces: list[ExpertTrace]) -> None:
    """The same comments at the same steps, above other lines: still the expert's program."""
    annotations = infer(loaded, traces)
    control = shuffled(annotations, np.random.default_rng(0))
    assert [path.switches for path in control.paths] == [path.switches for path in annotations.paths]
    assert control.paths != annotations.paths

    def used(given: Annotations) -> list[int]:
        return sorted(latent for path in given.paths for latent in path.segment_latents)

    assert used(control) == used(annotations)
    writer = DocumentWriter(loaded.tokenizer)
    for trace, document in zip(
        traces, write_documents(writer, traces, latents=control, rng=np.random.default_rng(0)), strict=True
    ):
        check_comment_only(document.text, trace.prompt + "".join(trace.steps))


def test_by_name_with_the_studys_configuration() -> None:
    config = RationaleConfig(steps=3, horizon=5, always_think=True)
    assert make_e_step("rationale") == RationaleEStep()
    assert make_e_step("brite") == RationaleEStep(brite_config())
    assert make_e_step("rationale", rationale=config) == RationaleEStep(RationaleConfig(steps=3))
    assert make_e_step("brite", rationale=config) == RationaleEStep(brite_config(config))


def test_by_name_in_the_loop(loaded: lm.LoadedModel, traces: list[ExpertTrace]) -> None:
    """The model learns to comment, then from its comments; a second iteration starts from what it became."""
    mid_training.register_e_step(
        "quick rationale", lambda: RationaleEStep(replace(CONFIG, steps=1, learning_rate=1e-3))
    )
    config = mid_training.EMConfig(mid_training.MStepConfig(tokens=2_000, tokens_per_batch=1_000), measured_traces=4)

    def run() -> mid_training.EMResult:
        recipe = mid_training.Recipe(latents="inferred")
        return mid_training.run(
            copied(loaded), traces, e_step="quick rationale", recipe=recipe, iterations=2, config=config, seed=3
        )

    result = run()
    assert result.annotations is not None
    assert result.annotations.comments is not None
    assert len(result.annotations.comments) > 10
    first, second = result.history
    assert first.code_nats is not None
    assert second.code_nats is not None
    assert second.code_nats < first.code_nats
    assert first.latent_nats is not None
    assert first.latent_nats > 0
    again = run()
    assert again.annotations is not None
    assert again.annotations.comments == result.annotations.comments
    assert again.annotations.paths == result.annotations.paths
    assert again.history == result.history


@pytest.mark.parametrize("name", TOKENIZERS)
def test_documents_have_the_tokens_that_the_policy_reads(name: str) -> None:
    """Also across the prompt's last line break, which GPT-2's kind of tokenizer joins to the first line's indent."""
    tokenizer = TOKENIZERS[name]
    trace = trace_of(PROMPT, BODY)
    layout = lay_out(tokenizer, trace)
    texts = ("", "# sort them", "# 1", "# up", "", "# x")
    vocabulary = CommentVocabulary(tokenizer, len(tokenizer))
    comments = [vocabulary.encode(*pair) if pair[1] else None for pair in zip(layout.places, texts, strict=True)]
    latent_at = {place.step: latent for latent, place in enumerate(layout.places)}
    latents = [latent_at.get(step, 0) for step in range(len(trace.steps))]
    switches = [step == 0 or texts[latent] != "" for step, latent in enumerate(latents)]
    path = LatentPath(tuple(latents), tuple(switches))
    annotations = Annotations((path,), ((),) * len(texts), comments=texts)
    document = DocumentWriter(tokenizer).write(trace, annotations)
    policy_ids = (*layout.prefix_ids, *assemble(layout, comments).ids)
    assert tokenizer.decode(policy_ids) == tokenizer.decode(document.ids[:-1]) == document.text
    assert document.ids[:-1] == policy_ids
