"""What all episodes of an environment that writes programs share: a model, tasks, their prompts, and the judge."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from ra3gym.abstractions.latents.comments import parsed
from ra3gym.envs.keywords import check_choice, check_render_mode, refuse_unknown_options
from ra3gym.errors import ConfigError, DataError, UnknownNameError
from ra3gym.lm import LoadedModel, encode_prompt, load
from ra3gym.lm.rendering import ForcedText, Prompt, completion_text, cut_prompt
from ra3gym.lm.stream import end_ids, writable_mask
from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.tasks.answers import without_latents
from ra3gym.tasks.ids import IdFinder
from ra3gym.verify import Judge, Verdict
from ra3gym.verify.grader import Graded, Grader

E = TypeVar("E")
Observation: TypeAlias = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]
ObservationKind = Literal["hidden", "tokens", "dict"]
RewardKind = Literal["fraction", "all"]
ShapingTerm = Literal["format", "length"]

HIDDEN_BOUND = 1e4
"""Hidden states are clipped to this; what a final normalization layer gives out stays far below."""


@dataclass(frozen=True)
class CodeConfig:
    """The keywords of all environments that write programs.

    Attributes:
        model: "embedded" (the checkpoint in the package), a Hugging Face folder or hub id; or a `LoadedModel` when the
            class is used directly. It must not change while the environment is in use.
        tasks: a name for `ra3gym.tasks.load_tasks`; or a sequence of tasks when the class is used directly.
        split: the part of the tasks, where `tasks` is a name. `None` takes the split "rl" of the embedded domain, whose
            compositions neither training nor evaluation has, and all of any other set.
        observation: "hidden" gives the model's last hidden state, "tokens" the padded token ids of prompt and program,
            "dict" the hidden state as "obs" beside the action mask as "mask".
        max_new_tokens: the budget of an episode in tokens.
        judge_workers: processes that grade programs. `None` takes 1 for one environment and 2 for several, whose
            programs may end in the same step.
        reward: "fraction" pays the fraction of hidden tests passed, "all" pays 1 if all pass and 0 otherwise.
        shaping: further terms of the reward, each with a weight; {"format": 0.1, "length": -0.2}, say. "format" is 1 if
            the program parses as Python, else 0; "length" is the share of `max_new_tokens` that was used. `None` for no
            such terms.
        device: where a model given by name is loaded.
        dtype: the precision of a model given by name, as `ra3gym.lm.load` names it.
        render_mode: `None`, "ansi" or "rgb_array".

    Raises:
        ConfigError: a value outside its choices or range.
    """

    model: str | os.PathLike[str] | LoadedModel = "embedded"
    tasks: str | Sequence[CodeTask] = "idioms"
    split: str | None = None
    _: KW_ONLY
    observation: ObservationKind = "hidden"
    max_new_tokens: int = 192
    judge_workers: int | None = None
    reward: RewardKind = "fraction"
    shaping: Mapping[str, float] | None = None
    device: str = "cpu"
    dtype: str = "float32"
    render_mode: str | None = None

    def __post_init__(self) -> None:
        check_choice("observation", self.observation, ObservationKind)
        check_choice("reward", self.reward, RewardKind)
        check_render_mode(self.render_mode)
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.judge_workers is not None and self.judge_workers < 1:
            raise ConfigError(f"judge_workers={self.judge_workers} must be at least 1, or None")
        shaping: Mapping[str, Any] = self.shaping or {}
        for term, weight in shaping.items():
            check_choice("shaping", term, ShapingTerm)
            if not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ConfigError(f"shaping={dict(shaping)}: the weight of {term!r} must be a finite number")


class CodeProblem:
    """A model and the tasks that it is to solve, within a budget of tokens.

    Args:
        config: see `CodeConfig`.
        num_programs: how many programs are written at once.
        cut_prompts: cut prompts back to where a token ends whatever follows (`ra3gym.lm.rendering`); otherwise they
            stay whole, as a latent's token ends any text.

    Raises:
        ConfigError: an empty set of tasks, or a prompt too long for the model.
        ModelError: the model cannot be loaded.
        UnknownNameError: no such set of tasks.
    """

    def __init__(self, config: CodeConfig, num_programs: int = 1, *, cut_prompts: bool = True) -> None:
        self.config = config
        model, tasks, split = config.model, config.tasks, config.split
        self.loaded = model if isinstance(model, LoadedModel) else _load(model, config.device, config.dtype)
        if split is None and tasks == "idioms":
            split = "rl"
        self.tasks = list(load_tasks(tasks, split=split) if isinstance(tasks, str) else tasks)
        if not self.tasks:
            raise ConfigError(f"tasks={tasks!r} holds no task")
        self.index = {task.task_id: i for i, task in enumerate(self.tasks)}
        self._ids = IdFinder(self.index)
        self._tasks_name = f"{tasks!r}, split {split!r}," if isinstance(tasks, str) else "the given sequence"
        self._judge_workers = min(2, num_programs) if config.judge_workers is None else config.judge_workers
        self._grader: Grader | None = None
        self._close_judge: weakref.finalize[[], CodeProblem] | None = None

        tokenizer: Any = self.loaded.tokenizer
        model_config: Any = self.loaded.model.config
        cut = [cut_prompt(tokenizer, task.prompt) for task in self.tasks] if cut_prompts else None
        self._cut = cut or [Prompt(encode_prompt(tokenizer, task.prompt)) for task in self.tasks]
        self.prompts = [prompt.ids for prompt in self._cut]
        """The tokens that episodes begin with."""
        self.forced = ForcedText.of(tokenizer, self._cut)
        """The texts that completions must begin with; `None` if no prompt was cut back."""
        self.max_length = self._longest(model_config)
        """Tokens of the longest prompt and `max_new_tokens`, together."""
        self.end_ids = end_ids(self.loaded)
        self.pad_id = min(self.end_ids) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.writable_V = writable_mask(self.loaded)
        """bool: the tokens that a completion may hold."""
        self.vocab_size = len(self.writable_V)
        self.hidden_size = int(model_config.get_text_config().hidden_size)

    # Tasks

    @property
    def task_ids(self) -> list[str]:
        """The ids that `reset(options={"task_id": ...})` takes."""
        return list(self.index)

    def draw_task(self, rng: np.random.Generator) -> int:
        """Return the index of a random task."""
        return int(rng.integers(len(self.tasks)))

    def task_index(self, task_id: object) -> int:
        """Return the index of a task; `UnknownNameError` with close matches if there is none of that name."""
        found = self._ids.find(task_id)
        if found is None:
            shown = get_close_matches(str(task_id), self.index, n=5) or self.task_ids[:5]
            hint = f"{self._tasks_name} holds {len(self.index)}; env.unwrapped.task_ids lists them all."
            raise UnknownNameError("task", task_id, shown, hint)
        return self.index[found]

    def pick(self, options: Mapping[str, Any], rng: np.random.Generator) -> int:
        """Return the index of the task that `reset(options=...)` asks for, or of a random one."""
        refuse_unknown_options(options, ("task_id",))
        return self.task_index(options["task_id"]) if "task_id" in options else self.draw_task(rng)

    # Texts

    def completion(self, task: int, written: Sequence[int]) -> str:
        """Return what was written as text, latents included, without the end token."""
        body = written[:-1] if written and written[-1] in self.end_ids else written
        return completion_text(self.loaded.tokenizer, self._cut[task], body)

    def program(self, task: int, written: Sequence[int]) -> str:
        """Return what is graded: the prompt and the completion without latents."""
        chosen = self.tasks[task]
        return chosen.prompt + without_latents(chosen, self.completion(task, written))

    def status(self, task: int, spent: str, verdict: Verdict | None) -> str:
        """Return the line above a rendered program."""
        line = f"{self.tasks[task].task_id}: {spent} of {self.config.max_new_tokens} tokens"
        if verdict is not None:
            line += f", {sum(verdict.tests)} of {len(verdict.tests)} tests passed ({verdict.status})"
        return line

    # Observations

    def observation_space(self, num_actions: int) -> gym.spaces.Space[Any]:
        """Return the space of one environment's observations."""
        if self.config.observation == "tokens":
            return gym.spaces.Box(0, self.vocab_size - 1, (self.max_length,), np.int64)
        hidden = gym.spaces.Box(-HIDDEN_BOUND, HIDDEN_BOUND, (self.hidden_size,), np.float32)
        if self.config.observation == "hidden":
            return hidden
        return gym.spaces.Dict({"obs": hidden, "mask": gym.spaces.Box(0, 1, (num_actions,), np.int8)})

    def padded(self, task: int, written: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the token ids of prompt and program, int64 `(max_length,)`, padded on the right."""
        ids = [*self.prompts[task], *written]
        return np.array(ids + [self.pad_id] * (self.max_length - len(ids)), dtype=np.int64)

    # Grading

    def submit(self, task: int, written: Sequence[int], spent: int) -> Submission:
        """Give one program to the judge and return without waiting. The first call starts the judge.

        Args:
            task: index of the task.
            written: the tokens of the completion.
            spent: how much of the budget was used, for the shaping term "length".
        """
        if self._grader is None:
            judge = Judge(workers=self._judge_workers)
            self._grader = Grader(judge, reward="score" if self.config.reward == "fraction" else "passed")
            # An environment that is dropped without close() leaves no processes. Nothing waits for verdicts then.
            self._close_judge = weakref.finalize(self, judge.close, cancel=True)
        program = self.program(task, written)
        shaped: dict[str, float] = {}
        if self.config.shaping:
            values = {"format": _parses(program), "length": spent / self.config.max_new_tokens}
            shaped = {term: weight * values[term] for term, weight in self.config.shaping.items()}
        return Submission(self._grader.submit_programs([self.tasks[task]], [program]), shaped)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the judge out: copies and pickles start one of their own."""
        return self.__dict__ | {"_grader": None, "_close_judge": None}

    def close(self) -> None:
        """End the judge's processes; safe to call twice."""
        if self._grader is not None and self._close_judge is not None:
            self._close_judge.detach()
            self._grader.judge.close()
            self._grader = None

    def _longest(self, model_config: Any) -> int:
        """Return `max_length`; refuse prompts that leave no room for `max_new_tokens` before any training begins."""
        positions = getattr(model_config, "max_position_embeddings", None)
        longest, task = max(zip(map(len, self.prompts), self.tasks, strict=True), key=lambda pair: pair[0])
        budget = self.config.max_new_tokens
        length = longest + budget
        if positions is not None and length > positions:
            raise ConfigError(
                f"the prompt of task {task.task_id!r} ({longest} tokens) and max_new_tokens={budget} need "
                f"{length} positions, but the model has {positions}; lower max_new_tokens or take another model"
            )
        return length


@dataclass(frozen=True)
class Submission:
    """A program that the judge is grading.

    Attributes:
        graded: the judge's grade, when it is there.
        shaped: the shaping terms of the reward, weighted.
    """

    graded: Future[list[Graded]]
    shaped: dict[str, float]

    def result(self) -> tuple[Graded, dict[str, float]]:
        """Wait for the grade. The terms of the reward come with it: `"tests"`, then those of `shaping`."""
        (graded,) = self.graded.result()
        return graded, {"tests": graded.reward, **self.shaped}


_GGUF_MODELS: weakref.WeakValueDictionary[object, LoadedModel] = weakref.WeakValueDictionary()
"""Models of GGUF files that environments of this process use: to convert one takes long, and environments only read."""


def _load(model: str | os.PathLike[str], device: str, dtype: str) -> LoadedModel:
    """Load a model by name; a GGUF file is loaded once for all environments that use it."""
    file = Path(model).expanduser()
    if file.suffix != ".gguf" or not file.is_file():
        return load(model, device=device, dtype=dtype)
    stat = file.stat()
    key = (file.resolve(), stat.st_mtime_ns, stat.st_size, device, dtype)
    loaded = _GGUF_MODELS.get(key)
    if loaded is None:
        loaded = _GGUF_MODELS[key] = load(model, device=device, dtype=dtype)
    return loaded


def copy_sharing_the_model(env: E, problem: CodeProblem, memo: dict[int, Any]) -> E:
    """Return a deep copy of an environment that shares the model and the tasks, for its `__deepcopy__`.

    Environments only read them, and a copy of all weights at each node of a tree would soon fill the memory.
    """
    for shared in (problem.loaded, problem.loaded.model, problem.loaded.tokenizer, problem.tasks):
        memo[id(shared)] = shared
    copied: E = object.__new__(type(env))
    memo[id(env)] = copied
    vars(copied).update({name: deepcopy(value, memo) for name, value in vars(env).items()})
    return copied


def _parses(program: str) -> bool:
    try:
        parsed(program)
    except DataError:
        return False
    return True


def clipped(hidden: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return hidden states as observations: float32, new in memory, within `HIDDEN_BOUND`."""
    array: npt.NDArray[np.float32] = hidden.float().clamp(-HIDDEN_BOUND, HIDDEN_BOUND).cpu().numpy()
    return array
