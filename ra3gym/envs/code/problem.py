"""What all episodes of an environment that writes programs share: a model, tasks, their prompts, and the judge."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from ra3gym.abstractions.latents.comments import parsed
from ra3gym.envs.options import check_choice, refuse_unknown_options
from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.lm import LoadedModel, encode_prompt, load, strip_latents
from ra3gym.lm.stream import end_ids, writable_mask
from ra3gym.lm.tokenizer import decode_completion
from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.verify import Judge, Verdict

Observation: TypeAlias = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]
ObservationKind = Literal["hidden", "tokens", "dict"]
RewardKind = Literal["fraction", "all"]
ShapingTerm = Literal["format", "length"]

HIDDEN_BOUND = 1e4
"""Hidden states are clipped to this; what a final normalisation layer gives out stays far below."""


class CodeProblem:
    """A model and the tasks that it is to solve, within a budget of tokens; see `TokenCodeEnv` for the arguments.

    Raises:
        ConfigError: an option outside its choices, an empty set of tasks, or a prompt too long for the model.
        ModelError: the model cannot be loaded.
        UnknownNameError: no such set of tasks.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel,
        tasks: str | Sequence[CodeTask],
        split: str | None,
        *,
        max_new_tokens: int,
        observation: ObservationKind,
        reward: RewardKind,
        shaping: Mapping[str, float] | None = None,
        judge_workers: int,
        device: str,
        dtype: str,
    ) -> None:
        check_choice("observation", observation, ObservationKind)
        check_choice("reward", reward, RewardKind)
        self.shaping: dict[str, Any] = dict(shaping or {})
        """Weights of further terms of the reward."""
        for term, weight in self.shaping.items():
            check_choice("shaping", term, ShapingTerm)
            if not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ConfigError(f"shaping={self.shaping}: the weight of {term!r} must be a finite number")
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1")
        self.max_new_tokens, self.observation, self.reward_kind = max_new_tokens, observation, reward
        self.loaded = model if isinstance(model, LoadedModel) else load(model, device=device, dtype=dtype)
        if split is None and tasks == "idioms":
            split = "rl"
        self.tasks = list(load_tasks(tasks, split=split) if isinstance(tasks, str) else tasks)
        if not self.tasks:
            raise ConfigError(f"tasks={tasks!r} holds no task")
        self.index = {task.task_id: i for i, task in enumerate(self.tasks)}
        self._tasks_name = "the given sequence" if not isinstance(tasks, str) else f"{tasks!r}, split {split!r},"
        self._judge_workers = judge_workers
        self._judge: Judge | None = None

        tokenizer: Any = self.loaded.tokenizer
        config: Any = self.loaded.model.config
        self.prompts = [encode_prompt(tokenizer, task.prompt) for task in self.tasks]
        self.length = self._longest(config)
        """Tokens of the longest prompt and `max_new_tokens`, together."""
        self.end_ids = end_ids(self.loaded)
        self.pad_id = min(self.end_ids) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.writable_V = writable_mask(self.loaded)
        """bool: the tokens that a completion may hold."""
        self.vocab_size = len(self.writable_V)
        self.hidden_size = int(config.get_text_config().hidden_size)

    # Tasks

    @property
    def task_ids(self) -> list[str]:
        """The ids that `reset(options={"task_id": ...})` takes."""
        return list(self.index)

    def draw_task(self, rng: np.random.Generator) -> int:
        """The index of a random task."""
        return int(rng.integers(len(self.tasks)))

    def task_index(self, task_id: object) -> int:
        """The index of a task; `UnknownNameError` with close matches when there is none of that name."""
        if task_id not in self.index:
            shown = get_close_matches(str(task_id), self.index, n=5) or self.task_ids[:5]
            hint = f"{self._tasks_name} holds {len(self.index)}; env.unwrapped.task_ids lists them all."
            raise UnknownNameError("task", task_id, shown, hint)
        return self.index[str(task_id)]

    def pick(self, options: Mapping[str, Any], rng: np.random.Generator) -> int:
        """The index of the task that `reset(options=...)` is to begin."""
        refuse_unknown_options(options, ("task_id",))
        return self.task_index(options["task_id"]) if "task_id" in options else self.draw_task(rng)

    # Texts

    def completion(self, task: int, written: Sequence[int]) -> str:
        """What was written as text, latents included, without the end token."""
        body = written[:-1] if written and written[-1] in self.end_ids else written
        return decode_completion(self.loaded.tokenizer, self.prompts[task], body)

    def program(self, task: int, written: Sequence[int]) -> str:
        """What is graded: the prompt and the completion without latents."""
        return self.tasks[task].prompt + strip_latents(self.completion(task, written))

    def status(self, task: int, spent: str, verdict: Verdict | None) -> str:
        """The line above a rendered program."""
        line = f"{self.tasks[task].task_id}: {spent} of {self.max_new_tokens} tokens"
        if verdict is not None:
            line += f", {sum(verdict.tests)} of {len(verdict.tests)} tests passed ({verdict.status})"
        return line

    # Observations

    def observation_space(self, num_actions: int) -> gym.spaces.Space[Any]:
        """The space of one environment's observations."""
        if self.observation == "tokens":
            return gym.spaces.Box(0, self.vocab_size - 1, (self.length,), np.int64)
        hidden = gym.spaces.Box(-HIDDEN_BOUND, HIDDEN_BOUND, (self.hidden_size,), np.float32)
        if self.observation == "hidden":
            return hidden
        return gym.spaces.Dict({"obs": hidden, "mask": gym.spaces.Box(0, 1, (num_actions,), np.int8)})

    def padded(self, task: int, written: Sequence[int]) -> npt.NDArray[np.int64]:
        """int64 `(L,)`: prompt and program, padded on the right."""
        ids = [*self.prompts[task], *written]
        return np.array(ids + [self.pad_id] * (self.length - len(ids)), dtype=np.int64)

    # Grading

    def submit(self, task: int, written: Sequence[int], spent: int) -> Graded:
        """Have the judge grade one program, without waiting; the judge starts with the first."""
        if self._judge is None:
            self._judge = Judge(workers=self._judge_workers)
        program = self.program(task, written)
        found = {"format": _parses(program), "length": spent / self.max_new_tokens} if self.shaping else {}
        shaped = {term: weight * found[term] for term, weight in self.shaping.items()}
        return Graded(self._judge.submit([(self.tasks[task], program)]), self.reward_kind, shaped)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start a judge of their own: its processes are not theirs."""
        return self.__dict__ | {"_judge": None}

    def close(self) -> None:
        """End the judge's processes; safe to call twice."""
        if self._judge is not None:
            self._judge.close()
            self._judge = None

    def _longest(self, config: Any) -> int:
        """Refuse prompts that leave no room for `max_new_tokens`, here rather than in the middle of training."""
        positions = getattr(config, "max_position_embeddings", None)
        longest, task = max(zip(map(len, self.prompts), self.tasks, strict=True), key=lambda pair: pair[0])
        length = longest + self.max_new_tokens
        if positions is not None and length > positions:
            raise ConfigError(
                f"the prompt of task {task.task_id!r} ({longest} tokens) and max_new_tokens={self.max_new_tokens} need "
                f"{length} positions, but the model has {positions}; lower max_new_tokens or take another model"
            )
        return length


@dataclass(frozen=True)
class Graded:
    """A program in the judge's hands, and what its episode is paid beside."""

    verdicts: Future[list[Verdict]]
    kind: RewardKind
    shaped: dict[str, float]

    def outcome(self) -> tuple[Verdict, dict[str, float]]:
        """Wait for the verdict; it comes with the terms of the reward, weighted: `"tests"` and those of `shaping`."""
        (verdict,) = self.verdicts.result()
        return verdict, {"tests": verdict.score if self.kind == "fraction" else float(verdict.passed), **self.shaped}


def _parses(program: str) -> bool:
    try:
        parsed(program)
    except DataError:
        return False
    return True


def clipped(hidden: torch.Tensor) -> npt.NDArray[np.float32]:
    """Hidden states as observations: float32, new in memory, within `HIDDEN_BOUND`."""
    found: npt.NDArray[np.float32] = hidden.float().clamp(-HIDDEN_BOUND, HIDDEN_BOUND).cpu().numpy()
    return found
