"""The programs that a frozen model writes in one batch, and the step of every environment that writes programs.

A batch holds E rows, each at its own task. A row that ends can begin a new task while the others continue. The
environments of `ra3gym.envs.code.episodes`, single and vector, only arrange its rows; a single one has one row.

Shape letters: see CONTRIBUTING.md (E rows, one per environment; B rows of this call; A actions).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ra3gym.abstractions.inference.problem import NO_LATENT
from ra3gym.envs.batched_episodes import BoolArray, Info
from ra3gym.envs.code.problem import CodeConfig, CodeProblem, Observation, Submission, clipped
from ra3gym.envs.colored_text import Run, ansi_text
from ra3gym.lm.fast.batch_stream import BatchStream
from ra3gym.lm.rendering import ForcedRows
from ra3gym.tasks.answers import split_latents
from ra3gym.verify import Verdict

C = TypeVar("C", bound=CodeConfig)

ILLEGAL = -1
"""Stands for every action that is masked or out of range."""


@dataclass(frozen=True)
class Step:
    """What one action in each of B rows led to.

    Attributes:
        terminated_B: bool, rows whose program ended with an end token.
        truncated_B: bool, rows that ran out of tokens or decisions.
        infos: the step's own infos, as columns of B rows, new in memory.
    """

    terminated_B: BoolArray
    truncated_B: BoolArray
    infos: Info


class CodeBatch(ABC, Generic[C]):
    """E episodes of one problem; a base class. Subclasses say what the actions are and what a step writes.

    Args:
        config: the keywords of the environment.
        num_rows: E.

    Raises:
        ConfigError, ModelError, UnknownNameError: as `CodeProblem`.
    """

    cuts_prompts = True
    """Whether the first action writes text; see `CodeProblem`."""

    def __init__(self, config: C, num_rows: int) -> None:
        self.config = config
        self.problem = CodeProblem(config, num_rows, cut_prompts=self.cuts_prompts)
        self.num_actions = self._count_actions()
        self.task_E = np.zeros(num_rows, dtype=np.int64)
        self.spent_E = np.zeros(num_rows, dtype=np.int64)
        """Tokens of the budget that are used: one for each written token, and one for each illegal action."""
        self.decisions_E = np.zeros(num_rows, dtype=np.int64)
        """Actions taken in this episode."""
        self.legal_EA = np.ones((num_rows, self.num_actions), dtype=np.bool_)
        forced = self.problem.forced
        self.forcing = None if forced is None else ForcedRows(forced.vocabulary, [""] * num_rows)
        """What rows have still to write of the text that was cut from their prompts; `None` if nothing was."""
        self._stream: BatchStream | None = None
        self._submissions: dict[int, Submission] = {}
        self._task_ids = np.array([task.task_id for task in self.problem.tasks], dtype=object)

    # What a subclass says

    @abstractmethod
    def _count_actions(self) -> int:
        """Return A. Called once, when configuration and problem are there."""

    @abstractmethod
    def _advance(self, rows: Sequence[int], actions: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> Step:
        """Take one action, or `ILLEGAL`, in each of these rows. Call `_submit` with every row whose episode ends."""

    @abstractmethod
    def _update_actions(self, rows: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> None:
        """Find out what the actions of these rows are now, and set their `legal_EA`."""

    @abstractmethod
    def _action_infos(self, rows: Sequence[int]) -> Info:
        """Return what infos say of these rows' actions besides the mask, as columns of B, new in memory."""

    # Episodes

    @property
    def stream(self) -> BatchStream:
        """The rows' tokens, once episodes have begun."""
        assert self._stream is not None, "no episode has begun"
        return self._stream

    def begin(self, rows: Sequence[int], tasks: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> None:
        """Begin these tasks in these rows, in one pass. The first call takes all rows, in order."""
        prompts = [self.problem.prompts[task] for task in tasks]
        self.task_E[list(rows)] = tasks
        self.spent_E[list(rows)] = self.decisions_E[list(rows)] = 0
        if self.forcing is not None and self.problem.forced is not None:
            for row, task in zip(rows, tasks, strict=True):
                self.forcing.rests[row] = self.problem.forced.texts[task]
        if self._stream is None:
            self._stream = BatchStream(self.problem.loaded, prompts)
        else:
            self._stream.begin(rows, prompts)
        self._update_actions(rows, rngs_E)

    def step(self, rows: Sequence[int], actions: Sequence[int], rngs_E: Sequence[np.random.Generator]) -> Step:
        """Take one action in each of these rows.

        The program of an episode that ends goes to the judge before the forward pass of the other rows, so grading
        runs beside it; `grades` waits for it.

        Args:
            rows: in ascending order, no row twice.
            actions: one per row; masked and out-of-range ones are illegal.
            rngs_E: one generator per environment.
        """
        self.decisions_E[self._index(rows)] += 1
        step = self._advance(rows, self._checked(rows, actions), rngs_E)
        self._update_actions(rows, rngs_E)
        return step

    def _append(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Add one token to each of these rows; the stream reads them next."""
        self.stream.append(rows, tokens)
        if self.forcing is not None:
            for row, token in zip(rows, tokens, strict=True):
                self.forcing.write(row, token)

    def _checked(self, rows: Sequence[int], actions: Sequence[int]) -> list[int]:
        """Return the actions, with `ILLEGAL` for those that are masked or out of range."""
        checked = []
        for row, action in zip(rows, actions, strict=True):
            is_legal = 0 <= action < self.num_actions and self.legal_EA[row, action]
            checked.append(action if is_legal else ILLEGAL)
        return checked

    # Grading

    def _submit(self, row: int) -> None:
        """Give a row's program to the judge, without waiting."""
        spent = int(self.spent_E[row])
        self._submissions[row] = self.problem.submit(int(self.task_E[row]), self.written(row), spent)

    def forget_submissions(self) -> None:
        """Drop grades that nobody has asked for."""
        self._submissions = {}

    def grades(self, rows: Sequence[int]) -> tuple[npt.NDArray[np.float64], Info]:
        """Wait for the grades of episodes that ended in the last step: rewards `(B,)`, and infos as columns of B."""
        results = [self._submissions[row].result() for row in rows]
        self.forget_submissions()
        verdict_B = np.empty(len(rows), dtype=object)
        verdict_B[:] = [graded.verdict for graded, _ in results]
        all_terms = [terms for _, terms in results]
        names = all_terms[0] if all_terms else {}
        columns = {name: np.array([terms[name] for terms in all_terms]) for name in names}
        reward_B = np.array([sum(terms.values()) for terms in all_terms], dtype=np.float64)
        return reward_B, {"verdict": verdict_B, "reward_terms": columns}

    # Texts

    def written(self, row: int) -> list[int]:
        """Return the tokens after a row's prompt."""
        return [] if self._stream is None else self._stream.written[row]

    def completion(self, row: int) -> str:
        """Return the text that a row has written, latents included, without the end token."""
        return self.problem.completion(int(self.task_E[row]), self.written(row))

    def program(self, row: int) -> str:
        """Return what is graded of a row."""
        return self.problem.program(int(self.task_E[row]), self.written(row))

    def render(self, row: int, verdict: Verdict | None, mode: str) -> Any:
        """Return a row's program under a line of status, as text ("ansi") or as a picture ("rgb_array").

        Segments have the colors of their latents. The text shows the latents' tokens, the picture their numbers
        beside the lines.
        """
        status = self.problem.status(int(self.task_E[row]), self._spent_text(row), verdict)
        if mode == "ansi":
            return f"# {status}\n{ansi_text(self._runs(row, with_tokens=True))}\n"
        from ra3gym.envs.frames import program_frame

        return program_frame(status, self._runs(row, with_tokens=False))

    def _spent_text(self, row: int) -> str:
        """Return how much of the budget a row has used, for its status line."""
        return str(self.spent_E[row])

    def _runs(self, row: int, *, with_tokens: bool) -> list[Run]:
        """Return the prompt, then the completion cut at its latents, with or without their tokens."""
        runs, latent = [Run(self.problem.tasks[int(self.task_E[row])].prompt)], NO_LATENT
        for name, text in split_latents(self.completion(row)):
            if name is not None and name != "pause":
                latent = int(name.removeprefix("z"))
            runs.append(Run(f"<|{name}|>{text}" if with_tokens and name is not None else text, latent))
        return runs

    # Returned data

    def observe(self, rows: Sequence[int]) -> Observation:
        """Return the observations of these rows, `(B, ...)`, new in memory."""
        if self.problem.config.observation == "tokens":
            return np.stack([self.problem.padded(int(self.task_E[row]), self.written(row)) for row in rows])
        hidden_BD = clipped(self.stream.hidden_BD(rows))
        if self.problem.config.observation == "hidden":
            return hidden_BD
        return {"obs": hidden_BD, "mask": self.legal_EA[self._index(rows)].astype(np.int8)}

    def infos(self, rows: Sequence[int]) -> Info:
        """Return the infos of these rows that do not depend on a step, as columns of B, new in memory."""
        index_B = self._index(rows)
        return {
            "task_id": self._task_ids[self.task_E[index_B]],
            **self._action_infos(rows),
            "action_mask": self.legal_EA[index_B].astype(np.int8),
        }

    def _index(self, rows: Sequence[int]) -> slice | list[int]:
        """Return an index of these rows in arrays over all: a slice for all of them, which numpy takes faster."""
        return slice(None) if len(rows) == len(self.task_E) else list(rows)
