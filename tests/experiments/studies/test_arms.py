"""Each arm's documents: what they share with other arms, what sets them apart, and equal budgets for all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from ra3gym import lm
from ra3gym.abstractions.latents import Annotations
from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.abstractions.latents.corpus import prompt_words
from ra3gym.abstractions.latents.document import DocumentWriter
from ra3gym.agents.mid_training import MStepConfig, distill
from ra3gym.agents.mid_training.e_steps.exact import ExactEStep
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.idioms import IdiomsDomain

TRAINED = [arm for arm in ARMS if ARMS[arm].recipe is not None and ARMS[arm].e_step is None]
EARLY = ["ra3-as-pseudo", "ra3-as-ntp-long"]
WITH_LATENTS = ["latents", "ra3", "shuffled", "random", "ra3-shuffled", "oracle", *EARLY]
WITH_PROMPTS = ["pseudo", "pseudo-pause", "ra3", "ra3-shuffled", "oracle", *EARLY]
NUM_LATENTS = 32


@dataclass
class Corpus:
    traces: list[ExpertTrace]
    inferred: Annotations
    planted: Annotations
    writer: DocumentWriter

    def documents(self, arm: str) -> list[list[int]]:
        recipe = ARMS[arm].recipe
        assert recipe is not None
        documents = recipe.documents(self.writer, self.traces, self.inferred, np.random.default_rng(0))
        return [list(document.ids) for document in documents]

    def texts(self, arm: str) -> list[str]:
        """The programs of an arm's documents, without latents, pauses and end."""
        texts = self.writer.tokenizer.batch_decode(self.documents(arm), skip_special_tokens=False)
        return [lm.strip_latents(text).removesuffix("<|endoftext|>") for text in texts]

    def latents(self, arm: str) -> list[list[int]]:
        """The latents of each document, in order."""
        index = {token: k for k, token in enumerate(self.writer.latent_ids)}
        return [[index[token] for token in ids if token in index] for ids in self.documents(arm)]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    domain = IdiomsDomain(length=3, difficulty="easy", documented=0.5, num_compositions=30, num_held_out=1)
    traces = domain.traces(100)
    tokenizer = lm.train_tokenizer((trace.task.canonical_program for trace in traces), vocab_size=400)
    lm.add_latents(None, tokenizer, NUM_LATENTS, pause=True)
    e_step = ExactEStep(CodebookConfig(num_latents=16, restarts=1, iterations=5))
    inferred = e_step.infer([trace.without_planted() for trace in traces], np.random.default_rng(0))
    return Corpus(traces, inferred, OracleEStep().infer(traces, np.random.default_rng(0)), DocumentWriter(tokenizer))


def test_only_the_oracle_reads_planted_labels(corpus: Corpus) -> None:
    misled = replace(corpus, traces=[replace(trace, planted=(0,) * len(trace.steps)) for trace in corpus.traces])
    for arm in TRAINED:
        assert (misled.documents(arm) == corpus.documents(arm)) == (arm != "oracle"), arm
    named = [arm for arm in TRAINED if "planted" in vars(ARMS[arm].recipe).values()]
    assert named == ["oracle"]


def test_base_has_no_mid_training() -> None:
    assert [arm for arm in ARMS if ARMS[arm].recipe is None] == ["base"]


@pytest.mark.parametrize("arm", TRAINED)
def test_every_arm_trains_on_the_same_programs(corpus: Corpus, arm: str) -> None:
    """But for the prompts that some arms write where there is none."""
    for text, trace in zip(corpus.texts(arm), corpus.traces, strict=True):
        program = trace.task.canonical_program
        if arm in WITH_PROMPTS and not prompt_words(trace.prompt):
            assert text.endswith(program)
            assert text.count("\n") <= program.count("\n") + 1
        else:
            assert text == program


def test_prompts_are_written_in_these_arms_alone(corpus: Corpus) -> None:
    documented = sum(bool(prompt_words(trace.prompt)) for trace in corpus.traces)
    for arm in TRAINED:
        found = sum(bool(prompt_words(text)) for text in corpus.texts(arm))
        assert (found > documented + 20) == (arm in WITH_PROMPTS), arm
    assert corpus.texts("ra3") == corpus.texts("ra3-shuffled") == corpus.texts("pseudo")
    assert corpus.texts("oracle") != corpus.texts("pseudo")


def test_latents_stand_in_these_arms_alone(corpus: Corpus) -> None:
    assert [arm for arm in TRAINED if any(corpus.latents(arm))] == [arm for arm in TRAINED if arm in WITH_LATENTS]
    inferred = [list(path.segment_latents) for path in corpus.inferred.paths]
    assert corpus.latents("latents") == corpus.latents("ra3") == inferred
    assert corpus.latents("oracle") == [list(path.segment_latents) for path in corpus.planted.paths]


def test_controls_keep_what_they_control_for(corpus: Corpus) -> None:
    lengths = {arm: [len(ids) for ids in corpus.documents(arm)] for arm in TRAINED}
    assert lengths["pause"] == lengths["random"] == lengths["shuffled"] == lengths["latents"] != lengths["ntp"]
    assert lengths["ra3"] == lengths["ra3-shuffled"] == lengths["pseudo-pause"]
    flat = {arm: [z for latents in corpus.latents(arm) for z in latents] for arm in WITH_LATENTS}
    for control in ("shuffled", "ra3-shuffled"):
        assert flat[control] != flat["latents"]
        assert sorted(flat[control]) == sorted(flat["latents"])
    assert sorted(flat["random"]) != sorted(flat["latents"])
    assert set(flat["random"]) <= set(range(corpus.inferred.num_latents))
    pause = lm.pause_id(corpus.writer.tokenizer)
    for control in ("pause", "pseudo-pause"):
        paused = [ids.count(pause) for ids in corpus.documents(control)]
        assert paused == [len(path.segment_latents) for path in corpus.inferred.paths]
    assert corpus.texts("pseudo-pause") == corpus.texts("pseudo")


def test_documents_follow_the_generator(corpus: Corpus) -> None:
    for arm in TRAINED:
        assert corpus.documents(arm) == corpus.documents(arm), arm


def test_latents_may_come_from_any_e_step(corpus: Corpus) -> None:
    """Annotations without a single name leave prompts missing."""
    nameless = replace(corpus.inferred, names=((),) * corpus.inferred.num_latents)
    assert replace(corpus, inferred=nameless).texts("ra3") == corpus.texts("ntp")


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Any:
    return lm.tiny_llama(corpus.writer.tokenizer, hidden=16, layers=1, heads=2, seed=0)


def test_budgets_are_equal(corpus: Corpus, model: Any) -> None:
    config = MStepConfig(tokens=1500, tokens_per_batch=300)
    for arm in TRAINED:
        documents = corpus.documents(arm)
        seen = distill(model, documents, config, seed=0)
        assert 1500 <= seen < 1500 + 300 + max(map(len, documents)), arm
