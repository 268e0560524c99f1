"""E-steps by name: the exact one, the planted upper bound, and a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ra3gym.abstractions.latents import Annotations
from ra3gym.abstractions.latents.codebook import CodebookConfig
from ra3gym.abstractions.latents.path import LatentPath
from ra3gym.agents.mid_training import make_e_step, register_e_step
from ra3gym.agents.mid_training.e_steps.exact import ExactEStep
from ra3gym.agents.mid_training.e_steps.oracle import OracleEStep
from ra3gym.errors import DataError, UnknownNameError
from ra3gym.tasks import CodeTask, ExpertTrace, FunctionTests
from ra3gym.tasks.idioms import LABELS, IdiomsDomain
from ra3gym.tasks.idioms.catalogue import IDIOMS, MODIFIERS

SMALL = ExactEStep(CodebookConfig(num_latents=8, restarts=2, iterations=4))


def make_trace(prompt: str, *steps: str, planted: tuple[int, ...] | None = None) -> ExpertTrace:
    return ExpertTrace(CodeTask("mine/0", prompt, "f", FunctionTests(((1,),), (1,)), "".join(steps)), steps, planted)


class EveryLine:
    """A user's E-step: a new latent for each line, the position modulo four."""

    def infer(self, traces: Sequence[ExpertTrace], rng: np.random.Generator) -> Annotations:
        paths = [LatentPath(tuple(i % 4 for i in range(len(t.steps))), (True,) * len(t.steps)) for t in traces]
        return Annotations(tuple(paths), ((),) * 4)


def test_the_exact_e_step_reads_no_planted_label(traces: list[ExpertTrace]) -> None:
    hidden = [trace.without_planted() for trace in traces]
    misled = [replace(trace, planted=tuple(reversed(trace.planted or ()))) for trace in traces]
    found = [SMALL.infer(corpus, np.random.default_rng(0)) for corpus in (traces, hidden, misled)]
    assert found[0].paths == found[1].paths == found[2].paths
    assert found[0].names == found[1].names == found[2].names


def test_the_exact_e_step(traces: list[ExpertTrace]) -> None:
    found = SMALL.infer(traces, np.random.default_rng(0))
    assert [len(path.latents) for path in found.paths] == [len(trace.steps) for trace in traces]
    assert found.num_latents == 8
    assert found.metrics["latents_named"] == sum(bool(words) for words in found.names) > 0
    assert found.metrics["evidence"] < 0
    assert found.metrics["seconds"] > 0
    assert SMALL.infer(traces, np.random.default_rng(1)).paths != found.paths


def test_the_oracle_by_hand() -> None:
    traces = [
        make_trace("# up\ndef f(n):\n", "    n += 1\n", "    n += 1\n", "    return n\n", planted=(2, 2, 0)),
        make_trace("# down up\ndef f(n):\n", "    n -= 1\n", "    n += 1\n", "    return n\n", planted=(1, 2, 0)),
        make_trace("# down\ndef f(n):\n", "    n -= 1\n", "    return n\n", planted=(1, 0)),
        make_trace("def f(n):\n", "    n -= 1\n", "    return n\n", planted=(3, 0)),
    ]
    found = OracleEStep().infer(traces, np.random.default_rng(0))
    assert found.paths[0] == LatentPath((2, 2, 0), (True, False, True))
    assert found.paths[1] == LatentPath((1, 2, 0), (True, True, True))
    assert found.names == ((), ("down",), ("up",), ())


def test_the_oracle_names_every_idiom_by_its_words() -> None:
    domain = IdiomsDomain(difficulty="hard", documented=1.0, num_compositions=200, num_held_out=1)
    found = OracleEStep().infer(domain.traces(800), np.random.default_rng(0))
    for name, part in [*IDIOMS.items(), *MODIFIERS.items()]:
        assert set(found.names[LABELS[name]]) == set(part.words), name
    assert found.names[LABELS["return"]] == ()


def test_the_oracle_needs_labels(traces: list[ExpertTrace]) -> None:
    with pytest.raises(DataError, match=f"trace '{traces[0].task.task_id}' has no planted labels"):
        OracleEStep().infer([traces[0].without_planted()], np.random.default_rng(0))


@pytest.mark.parametrize("name", ["exact", "oracle"])
def test_both_refuse_an_empty_corpus(name: str) -> None:
    with pytest.raises(DataError, match="no traces"):
        make_e_step(name).infer([], np.random.default_rng(0))


def test_ones_own_by_name(traces: list[ExpertTrace]) -> None:
    register_e_step("every-line", EveryLine)
    found = make_e_step("every-line").infer(traces[:2], np.random.default_rng(0))
    assert found.paths[0].latents[:5] == (0, 1, 2, 3, 0)
    register_e_step("every-line", lambda: SMALL)
    assert make_e_step("every-line") is SMALL


def test_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown E-step 'exakt'.*Did you mean 'exact'.*register_e_step"):
        make_e_step("exakt")
    assert isinstance(make_e_step("exact"), ExactEStep)
    assert isinstance(make_e_step("oracle"), OracleEStep)
