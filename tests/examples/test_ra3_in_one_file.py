"""`examples/ra3_in_one_file.py` does what the package does: the same latents, losses and rewards from the same seed."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from ra3gym import lm
from ra3gym.abstractions.latents import Annotations
from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.agents import mid_training, rlvr
from ra3gym.agents.mid_training import MStepConfig
from ra3gym.agents.mid_training.e_steps.exact import ExactEStep
from ra3gym.agents.rlvr import RLVRConfig
from ra3gym.experiments.studies.evaluation import evaluate
from ra3gym.lm import LoadedModel
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.idioms import IdiomsDomain
from ra3gym.verify import Judge, Limits

FILE = Path(__file__).resolve().parents[2] / "examples" / "ra3_in_one_file.py"


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ra3_in_one_file", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


example = load_example()
ARGS = example.Args(
    seed=3,
    length=3,
    num_traces=400,
    num_base_traces=100,
    num_tasks=8,
    num_latents=24,
    restarts=2,
    em_iterations=8,
    hidden=32,
    base_tokens=10_000,
    tokens=20_000,
    rlvr_steps=3,
    tasks_per_step=4,
    group_size=4,
    rlvr_learning_rate=1e-3,
    max_new_tokens=48,
    samples=2,
)
E_STEP = ExactEStep(
    CodebookConfig(
        num_latents=ARGS.num_latents, restarts=ARGS.restarts, iterations=ARGS.em_iterations, backoff=ARGS.backoff
    )
)


@pytest.fixture(scope="module")
def domain() -> IdiomsDomain:
    return IdiomsDomain(ARGS.seed, ARGS.length, documented=ARGS.documented, num_held_out=ARGS.num_tasks)


@pytest.fixture(scope="module")
def traces(domain: IdiomsDomain) -> list[ExpertTrace]:
    return [trace.without_planted() for trace in domain.traces(ARGS.num_traces)]


@pytest.fixture(scope="module")
def programs(traces: list[ExpertTrace]) -> list[str]:
    return [trace.task.canonical_program for trace in traces]


@pytest.fixture(scope="module")
def base(programs: list[str]) -> Any:
    return example.make_lm(programs, ARGS)


@pytest.fixture(scope="module")
def annotations(traces: list[ExpertTrace]) -> Any:
    return example.e_step(traces, ARGS, np.random.default_rng([ARGS.seed, 1]))


@pytest.fixture(scope="module")
def inferred(traces: list[ExpertTrace]) -> Annotations:
    return E_STEP.infer(traces, np.random.default_rng([ARGS.seed, 1]))


@pytest.fixture(scope="module")
def annotated(traces: list[ExpertTrace], annotations: Any, inferred: Annotations) -> list[str]:
    rng = np.random.default_rng([ARGS.seed, 2])
    mid_training.RA3.sources(traces, inferred, rng)  # the loop draws controls from this stream before it draws words
    pairs = zip(traces, annotations.paths, strict=True)
    return [example.annotate(trace, path, annotations.names, rng) for trace, path in pairs]


def test_tokenizer_and_model_are_those_of_lm(programs: list[str], base: Any) -> None:
    tokenizer = lm.train_tokenizer(programs, ARGS.vocab_size)
    lm.add_latents(None, tokenizer, ARGS.num_latents)
    assert tokenizer.get_vocab() == base.tokenizer.get_vocab()
    model = lm.tiny_llama(tokenizer, hidden=ARGS.hidden, layers=ARGS.layers, heads=4, seed=ARGS.seed)
    weights = base.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_latents_are_exactly_those_of_the_exact_e_step(annotations: Any, inferred: Annotations) -> None:
    paths = [list(zip(path.latents, path.switches, strict=True)) for path in inferred.paths]
    assert paths == annotations.paths
    assert [list(words) for words in inferred.names] == annotations.names
    assert inferred.metrics["evidence"] == pytest.approx(annotations.evidence, abs=1e-9)


class PlainLlama(LlamaForCausalLM):
    """Llama by another name: `training_loss` then forms all logits at once, as the example does.

    For Llama itself it forms them in chunks. That rounds otherwise, which Muon's bfloat16 arithmetic amplifies.
    """


@pytest.mark.parametrize(("kind", "tolerance"), [(PlainLlama, 1e-5), (LlamaForCausalLM, 1e-3)])
@pytest.mark.parametrize("arm", ["RA3", "NTP"])
def test_documents_and_losses_are_those_of_mid_training(
    traces: list[ExpertTrace],
    programs: list[str],
    base: Any,
    annotated: list[str],
    inferred: Annotations,
    arm: str,
    kind: type[LlamaForCausalLM],
    tolerance: float,
) -> None:
    model = kind(base.model.config)
    model.load_state_dict(base.model.state_dict())
    losses: list[float] = []
    m_step = MStepConfig(
        tokens=ARGS.tokens,
        learning_rate=ARGS.learning_rate,
        matrix_learning_rate=ARGS.learning_rate,
        tokens_per_batch=ARGS.tokens_per_batch,
    )
    result = mid_training.run(
        LoadedModel(model, base.tokenizer),
        traces,
        recipe=getattr(mid_training, arm),
        e_step=E_STEP,
        config=mid_training.EMConfig(m_step, compare_ntp=False, measured_traces=0),
        seed=ARGS.seed,
        on_progress=lambda _, progress: losses.append(progress.loss),
    )
    texts = annotated if arm == "RA3" else programs
    encoded = [(*ids, base.tokenizer.eos_token_id) for ids in example.encode(base, texts)]
    assert encoded == [document.ids for document in result.documents]
    found = example.m_step(example.LM(copy.deepcopy(base.model), base.tokenizer), texts, ARGS.tokens, ARGS)
    assert len(found) > 30
    np.testing.assert_allclose(found, losses, rtol=0, atol=tolerance)


def test_rewards_and_losses_are_those_of_rlvr() -> None:
    """From the checkpoint in the package, which solves some of the tasks."""
    tasks = IdiomsDomain(num_held_out=8).tasks("rl")
    args = replace(ARGS, max_new_tokens=160)
    config = RLVRConfig(
        steps=args.rlvr_steps,
        tasks_per_step=args.tasks_per_step,
        group_size=args.group_size,
        learning_rate=args.rlvr_learning_rate,
        max_new_tokens=args.max_new_tokens,
        stop_at_function_end=False,
    )
    theirs, mine = lm.load("embedded"), lm.load("embedded")
    with Judge(workers=1, limits=Limits(seconds=1.0, memory_mb=512)) as judge:
        history = rlvr.train(theirs, tasks, algorithm="grpo_token", config=config, reward=judge, seed=args.seed).history
        rewards, losses = example.grpo(mine, tasks, judge, args)
        found = example.evaluate(mine, tasks, judge, args)
        evaluation = evaluate(
            theirs.model,
            theirs.tokenizer,
            tasks,
            judge,
            samples=args.samples,
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
        )
    assert 0.0 < np.mean(rewards) < 1.0
    assert rewards == pytest.approx([step.reward for step in history], abs=1e-6)
    assert losses == pytest.approx([step.loss for step in history], abs=1e-5)
    assert found == pytest.approx(evaluation.pass_at[1])


def test_main_runs_all_stages_of_both_arms(capsys: pytest.CaptureFixture[str]) -> None:
    scores = example.main(ARGS)
    assert list(scores) == ["RA3", "RA3 + RLVR", "NTP", "NTP + RLVR"]
    assert all(0.0 <= score <= 1.0 for score in scores.values())
    printed = capsys.readouterr().out
    assert "<|z" in printed
    assert all(stage in printed for stage in ("base model", "E-step", "M-step", "RLVR"))
