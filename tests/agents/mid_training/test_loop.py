"""EM: iterations, what they measure and export, and that a resumption changes nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from ra3gym import lm
from ra3gym.abstractions.latents import Annotations
from ra3gym.abstractions.latents.corpus import encode_traces
from ra3gym.abstractions.latents.dataset import read_annotated
from ra3gym.abstractions.latents.document import DocumentWriter
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.abstractions.latents.prior import fit_prior, prior_of_paths
from ra3gym.agents import mid_training
from ra3gym.agents.mid_training import MStepConfig
from ra3gym.agents.mid_training.e_steps.model import ModelEStep
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.agents.mid_training.inference.policy_gradient import PolicyGradientAgent
from ra3gym.agents.mid_training.inference.posteriors import ExactAgent
from ra3gym.agents.mid_training.measurements import collapse
from ra3gym.errors import ConfigError, DataError, ModelError, RunFolderError, UnknownNameError
from ra3gym.lm import LoadedModel
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.idioms import IdiomsDomain

CONFIG = mid_training.EMConfig(MStepConfig(tokens=20_000), measured_traces=20)

SEED = 1
"""The latents of other seeds may collapse in the second iteration: the model is tiny."""


@pytest.fixture(scope="module")
def base(tokenizer: Any) -> LoadedModel:
    model = lm.tiny_llama(tokenizer, hidden=32, layers=2, heads=2, max_length=256, seed=0)
    return LoadedModel(model, tokenizer)


def fresh(base: LoadedModel) -> LoadedModel:
    return LoadedModel(copy.deepcopy(base.model), base.tokenizer)


@pytest.fixture(scope="module")
def finished(base: LoadedModel, traces: list[ExpertTrace], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("em") / "run"
    return mid_training.run(fresh(base), traces[:60], iterations=2, config=CONFIG, seed=SEED, folder=folder), folder


def test_iterations_are_measured(finished: Any, traces: list[ExpertTrace]) -> None:
    result, _ = finished
    assert [one.iteration for one in result.history] == [1, 2]
    for one in result.history:
        assert one.evidence is not None
        assert one.elbo == pytest.approx(one.evidence)
        assert 0 < one.switch_rate <= 1
        assert one.mean_duration >= 1
        assert 1 < one.perplexity <= 32
        assert one.information > 0
        assert one.diagnosis
        assert one.tokens >= CONFIG.m_step.tokens
        assert one.code_nats > 0
        assert one.ntp_code_nats is not None
    first, second = result.history
    assert second.code_nats < first.code_nats, "more training, less loss"
    assert second.ntp_code_nats < first.ntp_code_nats
    assert len(result.annotations.paths) == 60


def test_what_evidence_is_of_is_said(finished: Any) -> None:
    """A codebook's line is one symbol, a model's is all its tokens: their evidence is not on one scale."""
    first, second = finished[0].history
    assert (first.evidence_of, second.evidence_of) == ("templates", "tokens")
    assert f"evidence {first.evidence:.2f} nats a line of templates, " in first.line
    assert first.line.startswith(f"iteration 1: {first.tokens:,} tokens, ")
    assert second.line.endswith(second.diagnosis)


def test_latents_that_collapse_are_a_warning_and_in_the_history(base: LoadedModel, traces: list[ExpertTrace]) -> None:
    """The first latents are informative; the second E-step puts all lines of a trace under one."""

    class Fails:
        calls = 0

        def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
            self.calls += 1
            if self.calls == 1:
                return OracleEStep().infer(planted, rng)
            paths = [LatentPath((0,) * len(t.steps), (True,) + (False,) * (len(t.steps) - 1)) for t in traces]
            return Annotations(tuple(paths), ((),) * 32)

    planted = traces[:10]
    config = mid_training.EMConfig(MStepConfig(tokens=600), compare_ntp=False, measured_traces=5)
    with pytest.warns(UserWarning, match=r"the latents collapsed in iteration 2: 0.0% of lines switch, \d"):
        result = mid_training.run(fresh(base), planted, e_step=Fails(), iterations=3, config=config)
    first, second, third = result.history
    assert first.change is None
    assert second.change is not None
    assert f"after {first.tokens} tokens" in second.change
    assert third.change is None, "said once"


@pytest.mark.parametrize(
    ("before", "after", "collapsed"),
    [
        ((0.2, 9.0, 0.5), (0.0, 9.0, 0.5), True),
        ((0.2, 9.0, 0.5), (0.1, 1.2, 0.5), True),
        ((0.01, 26.5, 0.24), (0.16, 6.7, -0.18), True),
        ((0.2, 9.0, 0.5), (0.1, 5.0, 0.3), False),
        ((0.0, 1.2, 0.0), (0.0, 1.1, 0.0), False),
        ((None, 9.0, 0.5), (None, 9.0, 0.5), False),
    ],
)
def test_what_counts_as_a_collapse(
    before: tuple[float | None, float, float], after: tuple[float | None, float, float], collapsed: bool
) -> None:
    first, second = (
        mid_training.EMIteration(number, 600, switch_rate=rate, perplexity=perplexity, information=information)
        for number, (rate, perplexity, information) in enumerate((before, after), 1)
    )
    assert (collapse(first, second) is not None) == collapsed


def test_later_e_steps_start_from_the_annotations_before(finished: Any, traces: list[ExpertTrace]) -> None:
    """Where the model tells latents apart by little, EM from uniform fresh latents has an optimum without switches."""
    result, _ = finished
    rng = np.random.default_rng(0)
    visible = [trace.without_planted() for trace in traces[:60]]
    from_before = ModelEStep(result.loaded, ExactAgent(), num_latents=32, previous=result.annotations)
    with pytest.raises(DataError, match=r"60 paths with .* for 20 traces"):
        from_before.infer(visible[:20], rng)
    corpus = encode_traces(visible)
    prior = prior_of_paths(corpus, result.annotations.paths, 32)
    assert prior.word_WK.sum(axis=1) == pytest.approx(1.0)
    switches = np.concatenate([path.switches for path in result.annotations.paths])
    previous = corpus.previous_N[switches]
    assert (prior.keep_U1[previous] < 1.0).all()
    # Emissions that say nothing leave the prior as it was: no switch is forgotten.
    flat_NK = np.full((len(corpus.line_N), 32), -1.0)
    kept = fit_prior(corpus, flat_NK, start=prior, iterations=1).chain.keep_N
    assert np.corrcoef(kept, prior.keep_U1[corpus.previous_N])[0, 1] > 0.9


def test_a_tokenizer_without_latents_is_told_ahead(traces: list[ExpertTrace]) -> None:
    tokenizer: Any = lm.train_tokenizer((trace.task.canonical_program for trace in traces), vocab_size=400)
    model = lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, max_length=256, seed=0)
    with pytest.raises(ModelError, match=r"has 0 latent tokens.* ra3gym.lm.add_latents\(model, tokenizer, 48\)"):
        mid_training.run(LoadedModel(model, tokenizer), traces)
    config = mid_training.EMConfig(MStepConfig(tokens=600), compare_ntp=False, measured_traces=0)
    assert mid_training.run(LoadedModel(model, tokenizer), traces[:5], recipe=mid_training.NTP, config=config).history


def test_traces_are_exported_for_any_trainer(finished: Any, traces: list[ExpertTrace]) -> None:
    result, folder = finished
    table = datasets.load_dataset("json", data_files=str(folder / "traces" / "iteration-2.jsonl"), split="train")
    assert len(table) == 60
    assert {"text", "latents", "switches", "segments"} <= set(table.column_names)
    assert tuple(table[3]["latents"]) == result.annotations.paths[3].latents
    assert "".join(table[3]["lines"]) == "".join(traces[3].steps)


def test_resuming_changes_nothing(finished: Any, base: LoadedModel, traces: list[ExpertTrace], tmp_path: Path) -> None:
    result, _ = finished
    folder = tmp_path / "run"

    class Stop(Exception):
        pass

    def stop(_: mid_training.EMIteration) -> None:
        raise Stop

    with pytest.raises(Stop):
        mid_training.run(
            fresh(base), traces[:60], iterations=2, config=CONFIG, seed=SEED, folder=folder, on_iteration=stop
        )
    assert json.loads((folder / "checkpoints" / "iteration-1" / "metrics.json").read_text())["iteration"] == 1
    again = mid_training.run(
        fresh(base), traces[:60], iterations=2, config=CONFIG, seed=SEED, folder=folder, resume=True
    )
    assert again.history == result.history
    assert again.annotations.paths == result.annotations.paths
    whole, resumed = (one.loaded.model.state_dict() for one in (result, again))
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_folders_are_not_mixed_up(finished: Any, base: LoadedModel, traces: list[ExpertTrace], tmp_path: Path) -> None:
    _, folder = finished
    with pytest.raises(RunFolderError, match="holds a run already"):
        mid_training.run(fresh(base), traces[:60], config=CONFIG, folder=folder)
    with pytest.raises(RunFolderError, match="another seed"):
        mid_training.run(fresh(base), traces[:60], config=CONFIG, folder=folder, seed=SEED + 1, resume=True)
    with pytest.raises(RunFolderError, match="is not a run"):
        mid_training.run(fresh(base), traces[:60], config=CONFIG, folder=tmp_path, resume=True)


def test_bad_input(base: LoadedModel, traces: list[ExpertTrace]) -> None:
    with pytest.raises(DataError, match="no traces"):
        mid_training.run(base, [])
    with pytest.raises(ConfigError, match="iterations=0"):
        mid_training.run(base, traces, iterations=0)
    with pytest.raises(UnknownNameError, match="sb3:PPO"):
        mid_training.run(base, traces, e_step="sb3:PP0")
    with pytest.raises(UnknownNameError, match="distill"):
        mid_training.run(base, traces, m_step="distil")


def test_own_steps(base: LoadedModel, traces: list[ExpertTrace]) -> None:
    """An E-step and an M-step of the user's, as objects."""
    seen: list[int] = []

    class EveryLine:
        def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
            paths = [LatentPath(tuple(range(len(t.steps))), (True,) * len(t.steps)) for t in traces]
            return Annotations(tuple(paths), ((),) * 32)

    def count(model: Any, documents: Sequence[list[int]], config: MStepConfig, **_: Any) -> int:
        seen.append(len(documents))
        return 7

    result = mid_training.run(fresh(base), traces[:5], e_step=EveryLine(), m_step=count, iterations=3, config=CONFIG)
    assert seen == [5] * 6, "the model's and next-token prediction's"
    assert [one.tokens for one in result.history] == [7] * 3
    assert [one.evidence for one in result.history] == [None] * 3
    assert {one.switch_rate for one in result.history} == {1.0}


def test_an_e_step_may_ask_for_the_model(base: LoadedModel, traces: list[ExpertTrace]) -> None:
    """It gets the model of each iteration before it infers; its latents may be comments."""
    asked: list[Any] = []

    class Comments:
        def for_model(self, loaded: LoadedModel) -> Comments:
            asked.append(loaded.model)
            return self

        def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
            paths = [LatentPath((1,) * len(t.steps), (True,) + (False,) * (len(t.steps) - 1)) for t in traces]
            return Annotations(tuple(paths), ((), ("start",)), comments=("", "# start"))

    loaded = fresh(base)
    config = mid_training.EMConfig(MStepConfig(tokens=600), measured_traces=5)
    result = mid_training.run(loaded, traces[:10], e_step=Comments(), iterations=2, config=config)
    assert asked == [loaded.model] * 2
    assert result.annotations.comments == ("", "# start")
    assert result.history[0].ntp_code_nats is not None


@pytest.mark.parametrize("recipe", [mid_training.NTP, mid_training.Recipe(latents="pause", prompts="inferred")])
def test_any_recipe_runs_and_is_exported_as_trained(
    recipe: mid_training.Recipe, base: LoadedModel, traces: list[ExpertTrace], tmp_path: Path
) -> None:
    trained: list[list[int]] = []

    def count(model: Any, documents: Sequence[list[int]], config: MStepConfig, **_: Any) -> int:
        trained.extend(documents)
        return config.tokens

    config = mid_training.EMConfig(MStepConfig(tokens=600), compare_ntp=False, measured_traces=5)
    folder = tmp_path / "run"
    result = mid_training.run(
        fresh(base), traces[:20], recipe=replace(recipe, budget=2.0), m_step=count, config=config, folder=folder
    )
    assert (result.annotations is None) == (recipe == mid_training.NTP)
    assert result.history[0].tokens == 1200
    assert (result.history[0].latent_nats == 0) == (recipe == mid_training.NTP)
    exported = read_annotated(folder / "traces" / "iteration-1.jsonl").documents
    assert exported == result.documents
    assert [list(document.ids) for document in exported] == trained


def test_the_first_iteration_has_the_streams_of_a_study(base: LoadedModel, traces: list[ExpertTrace]) -> None:
    """`[seed, 1]` for the E-step, `[seed, 2]` for documents, the seed itself for the M-step; later ones have others."""
    e_step_rngs: list[np.random.Generator] = []
    m_step_seeds: list[int] = []

    class Remembering:
        def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
            e_step_rngs.append(copy.deepcopy(rng))
            paths = [LatentPath((1,) * len(t.steps), (True,) * len(t.steps)) for t in traces]
            return Annotations(tuple(paths), ((), tuple("abcdefgh")))

    def remember(model: Any, documents: Sequence[list[int]], config: MStepConfig, *, seed: int, **_: Any) -> int:
        m_step_seeds.append(seed)
        return 1

    options: dict[str, Any] = {"e_step": Remembering(), "m_step": remember, "seed": 7}
    config = mid_training.EMConfig(compare_ntp=False, measured_traces=0)
    one = mid_training.run(fresh(base), traces[:20], config=config, **options)
    two = mid_training.run(fresh(base), traces[:20], config=config, iterations=2, **options)
    draws = [rng.integers(2**62) for rng in e_step_rngs]
    assert draws[0] == draws[1] == np.random.default_rng([7, 1]).integers(2**62) != draws[2]
    assert m_step_seeds[0] == m_step_seeds[1] == 7 != m_step_seeds[2]
    writer, rng = DocumentWriter(base.tokenizer), np.random.default_rng([7, 2])
    assert one.documents == tuple(mid_training.RA3.documents(writer, traces[:20], one.annotations, rng))
    assert two.documents != one.documents


def test_given_annotations_are_those_of_their_traces(base: LoadedModel, traces: list[ExpertTrace]) -> None:
    inferred = OracleEStep().infer(traces[:20], np.random.default_rng(0))
    config = mid_training.EMConfig(MStepConfig(tokens=600), compare_ntp=False, measured_traces=0)
    given = mid_training.GivenAnnotations(inferred)
    assert mid_training.run(fresh(base), traces[:20], e_step=given, config=config).annotations is inferred
    with pytest.raises(DataError, match="20 paths for 19 traces"):
        mid_training.run(fresh(base), traces[:19], e_step=given, config=config)


def test_traces_of_a_single_line_have_no_switch_rate(
    base: LoadedModel, traces: list[ExpertTrace], tmp_path: Path
) -> None:
    single = [ExpertTrace(trace.task, trace.steps[:1]) for trace in traces[:10]]
    config = mid_training.EMConfig(MStepConfig(tokens=600), measured_traces=5)
    result = mid_training.run(fresh(base), single, iterations=1, config=config, folder=tmp_path / "run")
    assert result.history[0].switch_rate is None
    kept = json.loads((tmp_path / "run" / "checkpoints" / "iteration-1" / "metrics.json").read_text())
    assert kept["switch_rate"] is None


@pytest.mark.parametrize("agent", [ExactAgent(), PolicyGradientAgent(updates=60)])
def test_latents_under_a_model(agent: Any, finished: Any, traces: list[ExpertTrace]) -> None:
    result, _ = finished
    found = ModelEStep(result.loaded, agent, num_latents=8, prior_iterations=3).infer(
        traces[:20], np.random.default_rng(0)
    )
    assert [len(path.latents) for path in found.paths] == [len(trace.steps) for trace in traces[:20]]
    assert max(max(path.latents) for path in found.paths) < 8
    assert found.metrics["elbo_gap"] < 0.2
    assert np.isfinite(found.metrics["evidence"])


def test_the_model_learns_what_latents_say() -> None:
    """Lines are likelier beside their latents than without any."""
    domain = IdiomsDomain(length=3, difficulty="easy", documented=0.5, num_compositions=60, num_held_out=1)
    traces = domain.traces(500)
    tokenizer: Any = lm.train_tokenizer((trace.task.canonical_program for trace in traces), vocab_size=400)
    lm.add_latents(None, tokenizer, 16)
    model = lm.tiny_llama(tokenizer, hidden=32, layers=2, heads=2, max_length=256, seed=0)
    config = mid_training.EMConfig(MStepConfig(tokens=120_000))
    recipe = mid_training.Recipe(latents="inferred")
    (one,) = mid_training.run(LoadedModel(model, tokenizer), traces, recipe=recipe, config=config).history
    assert one.ntp_code_nats is not None
    assert one.code_nats < 0.9 * one.ntp_code_nats
