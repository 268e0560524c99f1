"""A pruned action space for RLVR: the tokens that reference programs consist of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ra3gym.abstractions.pruning import Evidence, PrunedActions, assess, by_expert_frequency
from ra3gym.errors import ConfigError, DataError
from ra3gym.lm import LoadedModel, encode_prompt
from ra3gym.lm.stream import end_ids
from ra3gym.lm.tokenizer import latent_ids
from ra3gym.tasks import CodeTask
from ra3gym.tasks.answers import PAUSE_TOKEN

_HELD_OUT = 5
"""One program in so many is not used to choose the tokens; these programs measure the cost."""


def prune_to_expert(tasks: Sequence[CodeTask], loaded: LoadedModel, coverage: float) -> PrunedActions:
    """Keep the smallest set of tokens that makes up `coverage` of the tasks' reference programs.

    End tokens, latents and the pause token always stay: reference programs do not contain them. The program of every
    fifth task is held out; it gives the report's coverage and bound on the pruning error (in units of reward; see
    `ra3gym.abstractions.pruning.pruned_actions`).

    Args:
        coverage: in (0, 1].

    Raises:
        ConfigError: a coverage out of range.
        DataError: no task has a reference program.
    """
    if not 0 < coverage <= 1:
        raise ConfigError(f"prune_to_expert={coverage}: give the share of reference tokens to keep, above 0 up to 1")
    programs = [_completion_ids(task, loaded) for task in tasks if task.canonical_solution]
    if not programs:
        raise DataError(
            f"prune_to_expert={coverage} needs reference programs, and none of the {len(tasks):,} tasks has one"
        )
    config: Any = loaded.model.config
    num_tokens = config.get_text_config().vocab_size
    held_out = programs[_HELD_OUT - 1 :: _HELD_OUT]
    choosing = [ids for number, ids in enumerate(programs, 1) if number % _HELD_OUT]
    chosen = by_expert_frequency(choosing, num_tokens, coverage=coverage)
    kept = {*chosen.kept, *end_ids(loaded), *latent_ids(loaded.tokenizer)}
    pause = loaded.tokenizer.get_added_vocab().get(PAUSE_TOKEN)
    if pause is not None:
        kept.add(int(pause))
    evidence = Evidence(experts=held_out, return_range=1.0)
    return assess(sorted(kept), num_tokens, rule=chosen.rule, samples=chosen.samples, evidence=evidence)


def token_mask(pruned: PrunedActions) -> Tensor:
    """Return the kept tokens as `allowed_mask_V`, bool, for `ra3gym.agents.rlvr.train`."""
    return torch.from_numpy(pruned.mask)


def report_line(pruned: PrunedActions) -> str:
    """Return the report in one line."""
    line = f"sampling {pruned.size:,} of {pruned.num_actions:,} tokens"
    if pruned.expert_coverage is None or pruned.pruning_error is None:
        return f"{line}; there are too few reference programs to hold one out, so the cost is unknown"
    return (
        f"{line}: {pruned.expert_coverage:.2%} of the tokens of held-out reference programs; {pruned.experts_lost} of "
        f"these {pruned.experts} programs cannot be written, {pruned.experts_lost / pruned.experts:.2f} of their "
        f"reward as measured, and {pruned.pruning_error:.2f} at most (95% confidence)"
    )


def _completion_ids(task: CodeTask, loaded: LoadedModel) -> list[int]:
    """Return the tokens of the reference program from the first one that differs from the prompt's."""
    prompt, whole = (encode_prompt(loaded.tokenizer, text) for text in (task.prompt, task.canonical_program))
    shared = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return whole[shared:]
