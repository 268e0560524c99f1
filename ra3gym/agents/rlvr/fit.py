"""Whether algorithm, configuration, model, tasks and processes fit each other: checked before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence

from ra3gym.agents.rlvr.algorithms.registry import Algorithm
from ra3gym.agents.rlvr.algorithms.scope import Scope
from ra3gym.agents.rlvr.config import RLVRConfig
from ra3gym.errors import ConfigError
from ra3gym.lm import LoadedModel, token_budgets
from ra3gym.tasks import CodeTask


def check_fit(algorithm: Algorithm, config: RLVRConfig, loaded: LoadedModel, num_processes: int) -> Scope:
    """Check that algorithm, configuration, model and processes fit each other; return the scope that RL acts in.

    Raises:
        ConfigError: too small a group for the algorithm, tasks that cannot be shared evenly among the processes
            or are fewer than the minibatches, a negative weight, or a scope that the model has no tokens for.
        UnknownNameError: no such scope.
    """
    if algorithm.compares_samples and config.group_size < 2:
        raise ConfigError(
            f"group_size={config.group_size}: {algorithm.name!r} compares the samples of a task, give at least 2"
        )
    if config.tasks_per_step % num_processes:
        raise ConfigError(f"tasks_per_step={config.tasks_per_step} is not a multiple of the {num_processes} processes")
    if algorithm.minibatches > (share := config.tasks_per_step // num_processes):
        raise ConfigError(
            f"minibatches={algorithm.minibatches}: each needs at least one task of every process, and tasks_per_step="
            f"{config.tasks_per_step} gives a process {share}"
        )
    return Scope(
        config.act_on,
        loaded.tokenizer,
        latent_weight=config.latent_weight,
        comment_weight=config.comment_weight,
        code_weight=config.code_weight,
    )


def check_room(loaded: LoadedModel, tasks: Sequence[CodeTask], max_new_tokens: int) -> None:
    """Raise `ConfigError` when a prompt leaves no room for `max_new_tokens` in the model's context."""
    rooms = token_budgets(loaded, [task.prompt for task in tasks], max_new_tokens)
    short = [index for index, room in enumerate(rooms) if room < max_new_tokens]
    if short:
        raise ConfigError(
            f"{len(short)} of {len(tasks)} prompts, that of task {tasks[short[0]].task_id!r} first, leave less than "
            f"max_new_tokens={max_new_tokens} in the model's context ({rooms[short[0]]} tokens): leave these tasks "
            "out, or lower max_new_tokens"
        )
