"""The tasks that a command is given: unique ids, the limits their programs need, the room their prompts leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ra3gym.errors import DataError
from ra3gym.lm import LoadedModel, token_budgets
from ra3gym.tasks import CodeTask
from ra3gym.verify import Limits, Status


def judge_limits(seconds: float | None, memory_mb: int | None) -> Limits:
    """Return what one run of a program may use if its task does not say it: the given values, else the defaults."""
    default = Limits()
    return Limits(
        seconds=default.seconds if seconds is None else seconds,
        memory_mb=default.memory_mb if memory_mb is None else memory_mb,
    )


def without_limits(tasks: Sequence[CodeTask], seconds: float | None, memory_mb: int | None) -> list[CodeTask]:
    """Return the tasks without those limits of their own that a given value is to replace."""
    return [
        replace(
            task,
            seconds=task.seconds if seconds is None else None,
            memory_mb=task.memory_mb if memory_mb is None else None,
        )
        for task in tasks
    ]


def timeouts_line(statuses: Mapping[str, int]) -> str | None:
    """Return a warning about the share of programs that were out of time, `None` if there are none."""
    timeouts, total = statuses.get(Status.TIMEOUT, 0), sum(statuses.values())
    if not timeouts:
        return None
    return (
        f"{100 * timeouts / total:.1f}% of the samples were out of time: a share that changes between runs of the same "
        "programs says that the limit is too short for this machine (docs/judge.md)"
    )


def tasks_by_id(tasks: Sequence[CodeTask], names: str) -> dict[str, CodeTask]:
    """Return the tasks by their ids; `DataError` when two tasks of the sets `names` share one."""
    by_id = {task.task_id: task for task in tasks}
    if len(by_id) < len(tasks):
        ((task_id, count),) = Counter(task.task_id for task in tasks).most_common(1)
        raise DataError(
            f"task id {task_id!r} occurs {count} times in {names!r}; give each task an id of its own, or leave out a "
            "set that repeats another"
        )
    return by_id


def task_budgets(loaded: LoadedModel, tasks: Sequence[CodeTask], max_new_tokens: int) -> dict[str, int]:
    """Return the longest completion by task id, in tokens: `max_new_tokens`, or what the model's context leaves."""
    rooms = token_budgets(loaded, [task.prompt for task in tasks], max_new_tokens)
    return {task.task_id: room for task, room in zip(tasks, rooms, strict=True)}
