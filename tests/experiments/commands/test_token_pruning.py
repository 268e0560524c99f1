"""The tokens of reference programs as a pruned action space."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ra3gym import lm
from ra3gym.errors import ConfigError, DataError
from ra3gym.experiments.commands.token_pruning import prune_to_expert, report_line, token_mask
from ra3gym.tasks import CodeTask, load_tasks


@pytest.fixture(scope="module")
def embedded() -> lm.LoadedModel:
    return lm.load("embedded")


@pytest.fixture(scope="module")
def tasks() -> list[CodeTask]:
    return load_tasks("idioms", split="rl", limit=50)


def test_what_the_references_write_is_kept(embedded: lm.LoadedModel, tasks: list[CodeTask]) -> None:
    pruned = prune_to_expert(tasks, embedded, 1.0)
    kept = set(pruned.kept)
    choosing = [task for number, task in enumerate(tasks, 1) if number % 5]
    for task in choosing:
        prompt = lm.encode_prompt(embedded.tokenizer, task.prompt)
        whole = lm.encode_prompt(embedded.tokenizer, task.canonical_program)
        assert whole[: len(prompt)] == prompt
        assert set(whole[len(prompt) :]) <= kept
    assert {embedded.tokenizer.eos_token_id, *lm.latent_ids(embedded.tokenizer)} <= kept
    assert 10 < pruned.size < pruned.num_actions / 2
    assert pruned.num_actions == embedded.model.config.vocab_size
    assert pruned.expert_coverage is not None
    assert pruned.expert_coverage > 0.98
    assert pruned.error_is == "bound"
    mask_V = token_mask(pruned)
    assert mask_V.dtype == torch.bool
    assert set(mask_V.nonzero()[:, 0].tolist()) == kept
    assert report_line(pruned).startswith(f"sampling {pruned.size:,} of {pruned.num_actions:,} tokens: 9")


def test_the_measured_loss_is_said_beside_the_bound(embedded: lm.LoadedModel, tasks: list[CodeTask]) -> None:
    pruned = prune_to_expert(tasks, embedded, 0.9)
    assert pruned.experts == 10
    assert 0 < pruned.experts_lost <= 10
    assert pruned.pruning_error is not None
    assert pruned.pruning_error > pruned.experts_lost / 10 - 1e-9
    lost = f"; {pruned.experts_lost} of these 10 programs cannot be written, {pruned.experts_lost / 10:.2f} of"
    assert lost in report_line(pruned)
    assert f"and {pruned.pruning_error:.2f} at most" in report_line(pruned)


def test_less_coverage_keeps_less_and_may_cost_more(embedded: lm.LoadedModel, tasks: list[CodeTask]) -> None:
    reports = [prune_to_expert(tasks, embedded, coverage) for coverage in (0.9, 0.99, 1.0)]
    for narrow, wide in pairwise(reports):
        assert set(narrow.kept) < set(wide.kept)
        assert narrow.expert_coverage is not None
        assert wide.expert_coverage is not None
        assert narrow.expert_coverage <= wide.expert_coverage
        assert narrow.pruning_error is not None
        assert wide.pruning_error is not None
        assert narrow.pruning_error >= wide.pruning_error


def test_with_too_few_programs_the_cost_is_unknown(embedded: lm.LoadedModel, tasks: list[CodeTask]) -> None:
    pruned = prune_to_expert(tasks[:3], embedded, 0.99)
    assert pruned.pruning_error is None
    assert "unknown" in report_line(pruned)


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_out_of_range(embedded: lm.LoadedModel, tasks: list[CodeTask], coverage: float) -> None:
    with pytest.raises(ConfigError, match=f"prune_to_expert={coverage}"):
        prune_to_expert(tasks, embedded, coverage)


def test_tasks_without_references(embedded: lm.LoadedModel, tasks: list[CodeTask]) -> None:
    with pytest.raises(DataError, match="none of the 50 tasks has one"):
        prune_to_expert([replace(task, canonical_solution=None) for task in tasks], embedded, 0.9)
