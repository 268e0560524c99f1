"""The embedded domain: real Python functions, each a composition of idioms.

A composition is a chain of idioms with matching types (`list -> list -> ...`, `int -> ... -> list -> ...`). The hard
level adds control flow around some of them. The prompt of a documented program names its idioms in order, with one
word each. An undocumented program has only its `def` line. Training, tuning, RL and evaluation use disjoint
compositions. `seed` determines everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, Literal, get_args

from ra3gym.errors import ConfigError, UnknownNameError
from ra3gym.tasks.idioms.catalogue import (
    IDIOMS,
    INT_IDIOMS,
    LIST_IDIOMS,
    LOCAL_NAMES,
    MODIFIERS,
    PARAMETER_NAMES,
    STR_IDIOMS,
    Kind,
)
from ra3gym.tasks.task import CodeTask, ExpertTrace, FunctionTests

Difficulty = Literal["easy", "medium", "hard"]
Split = Literal["train", "tune", "rl", "eval"]
Composition = tuple[str, ...]
"""Names of idioms in order; `"twice:sort"` is an idiom under a modifier."""

HELD_OUT_SPLITS: tuple[Split, ...] = ("tune", "rl", "eval")
LABELS: dict[str, int] = {name: label for label, name in enumerate([*IDIOMS, *MODIFIERS, "return"])}
"""Planted label of each kind of line: its idiom, its modifier, or the final `return`."""


@dataclass(frozen=True)
class IdiomsDomain:
    """A seeded family of programs.

    Attributes:
        seed: determines all programs and tests.
        length: idioms per program, all different, typically 3 to 7 (at most 12 when "easy", else 18). Longer programs
            need more decisions, and abstraction helps more.
        difficulty: "easy" has lists only and one name per role; "medium" has lists, strings, integers, changes of
            type and varying names; "hard" adds control flow.
        documented: share of training traces whose prompt names their idioms. Most real code has no such prompt.
        num_compositions: training compositions of full length. More of them make generalization easier.
        num_held_out: compositions in each of the tune, rl and eval splits.
        num_tests: hidden tests per task, edge cases included.
        short_share: share of training traces that compose only two idioms.
    """

    seed: int = 0
    length: int = 5
    difficulty: Difficulty = "medium"
    documented: float = 0.3
    num_compositions: int = 1000
    num_held_out: int = 128
    num_tests: int = 10
    short_share: float = 0.25

    def __post_init__(self) -> None:
        if self.difficulty not in get_args(Difficulty):
            raise UnknownNameError("difficulty", self.difficulty, get_args(Difficulty))
        if not 0.0 <= self.documented <= 1.0:
            raise ConfigError(f"documented={self.documented} is a share of traces; give a value from 0 to 1")
        if not 1 <= self.length <= self._longest:
            raise ConfigError(
                f"length={self.length}: a program of difficulty {self.difficulty!r} composes 1 to {self._longest} "
                "different idioms"
            )
        if self.num_compositions < 1 or self.num_held_out < 1 or self.num_tests < 4:
            raise ConfigError(
                f"num_compositions={self.num_compositions}, num_held_out={self.num_held_out}, num_tests="
                f"{self.num_tests}: give at least 1, 1 and 4"
            )

    @property
    def _longest(self) -> int:
        """The length of the longest chain: all idioms of strings or integers, then all of lists."""
        before = 0 if self.difficulty == "easy" else min(len(STR_IDIOMS), len(INT_IDIOMS))
        return before + len(LIST_IDIOMS)

    def _random(self, purpose: str) -> Random:
        return Random(f"idioms/{self.seed}/{purpose}")

    def _idioms(self, kind: Kind) -> list[str]:
        groups = {"list": LIST_IDIOMS, "str": STR_IDIOMS, "int": INT_IDIOMS}
        return [idiom.name for idiom in groups[kind]]

    def _composition(self, rng: Random, length: int) -> Composition:
        """Draw a chain of `length` different idioms with matching types whose output depends on its input."""
        kinds: list[Kind] = ["list"] if self.difficulty == "easy" else ["list", "list", "str", "int"]
        while True:
            start = kind = rng.choice(kinds)
            chain: list[str] = []
            while len(chain) < length:
                used = {name.split(":")[-1] for name in chain}
                choices = [name for name in self._idioms(kind) if name not in used]
                if not choices:
                    break
                # Half of the steps change strings or integers to lists: the other types have few idioms.
                changes = [name for name in choices if IDIOMS[name].gives != kind]
                idiom = IDIOMS[rng.choice(changes if changes and rng.random() < 0.5 else choices)]
                modifiers = [m.name for m in MODIFIERS.values() if kind in m.kinds and idiom.gives == idiom.takes]
                if self.difficulty == "hard" and modifiers and rng.random() < 0.3:
                    chain.append(f"{rng.choice(modifiers)}:{idiom.name}")
                else:
                    chain.append(idiom.name)
                kind = idiom.gives
            if len(chain) == length and self._is_informative(tuple(chain), start):
                return tuple(chain)

    def _is_informative(self, composition: Composition, kind: Kind) -> bool:
        """Return whether eight random inputs give at least four different outputs."""
        rng = Random(f"informative/{composition}")
        outputs = {repr(run(composition, _random_input(rng, kind))) for _ in range(8)}
        return len(outputs) >= 4

    @cached_property
    def compositions(self) -> dict[Split, tuple[Composition, ...]]:
        """Disjoint compositions of full length for each split."""
        rng = self._random("compositions")
        total = self.num_compositions + len(HELD_OUT_SPLITS) * self.num_held_out
        found: dict[Composition, None] = {}
        for _ in range(200 * total):
            found.setdefault(self._composition(rng, self.length))
            if len(found) == total:
                break
        else:
            raise ConfigError(
                f"only {len(found)} different compositions of length {self.length} were found, {total} are needed: "
                "lower num_compositions or num_held_out, or raise length"
            )
        rest = list(found)
        splits: dict[Split, tuple[Composition, ...]] = {"train": tuple(rest[: self.num_compositions])}
        for index, split in enumerate(HELD_OUT_SPLITS):
            start = self.num_compositions + index * self.num_held_out
            splits[split] = tuple(rest[start : start + self.num_held_out])
        return splits

    def tasks(self, split: Split) -> list[CodeTask]:
        """Return the documented problems of a split, one for each composition, in a fixed order."""
        if split not in get_args(Split):
            raise UnknownNameError("split of idioms", split, get_args(Split))
        rng = self._random(f"tasks/{split}")
        return [
            self.trace(composition, rng, documented=True, task_id=f"idioms/{self.seed}/{split}/{index}").task
            for index, composition in enumerate(self.compositions[split])
        ]

    def traces(self, count: int) -> list[ExpertTrace]:
        """Return `count` expert traces of training compositions; a share `documented` has a prompt."""
        rng = self._random("traces")
        return [self._training_trace(rng, index) for index in range(count)]

    def _training_trace(self, rng: Random, index: int) -> ExpertTrace:
        if rng.random() < self.short_share and self.length > 2:
            composition = self._composition(rng, 2)
        else:
            composition = rng.choice(self.compositions["train"])
        documented = rng.random() < self.documented
        return self.trace(composition, rng, documented=documented, task_id=f"idioms/{self.seed}/train/{index}")

    def base_traces(self, count: int) -> list[ExpertTrace]:
        """Return `count` undocumented traces of one or two idioms, on which the base model is pre-trained."""
        rng = self._random("base")
        return [
            self.trace(
                self._composition(rng, rng.choice((1, 2))),
                rng,
                documented=False,
                task_id=f"idioms/{self.seed}/base/{index}",
            )
            for index in range(count)
        ]

    def trace(self, composition: Composition, rng: Random, *, documented: bool, task_id: str) -> ExpertTrace:
        """Write one program for the composition, with variants and names drawn from `rng`, and its hidden tests."""
        lines, labels, parameter = self._write(composition, rng)
        prompt = f"def f({parameter}):\n"
        if documented:
            prompt = f"# {' '.join(_words(composition, rng))}\n{prompt}"
        task = CodeTask(
            task_id=task_id,
            prompt=prompt,
            entry_point="f",
            tests=self._tests(composition, task_id),
            canonical_solution="".join(lines),
            source="idioms",
            license="Apache-2.0",
        )
        return ExpertTrace(task=task, steps=tuple(lines), planted=tuple(labels))

    def _write(self, composition: Composition, rng: Random) -> tuple[list[str], list[int], str]:
        def name(choices: tuple[str, ...]) -> str:
            return choices[0] if self.difficulty == "easy" else rng.choice(choices)

        parameter = variable = name(PARAMETER_NAMES[start_kind(composition)])
        local = {role: name(choices) for role, choices in LOCAL_NAMES.items()}
        lines: list[str] = []
        labels: list[int] = []
        for step in composition:
            modifier, _, idiom_name = step.rpartition(":")
            idiom = IDIOMS[idiom_name]
            result = variable if idiom.gives == idiom.takes else name(PARAMETER_NAMES[idiom.gives])
            indent = "    "
            if modifier:
                lines.append(f"{indent}{MODIFIERS[modifier].head.format(x=variable)}\n")
                labels.append(LABELS[modifier])
                indent += "    "
            block = rng.choice(idiom.variants).format(x=variable, y=result, **local)
            for line in block.split("\n"):
                lines.append(f"{indent}{line}\n")
                labels.append(LABELS[idiom_name])
            variable = result
        lines.append(f"    return {variable}\n")
        labels.append(LABELS["return"])
        return lines, labels, parameter

    def _tests(self, composition: Composition, task_id: str) -> FunctionTests:
        rng = Random(f"tests/{task_id}/{composition}")
        kind = start_kind(composition)
        inputs = [*_EDGE_CASES[kind]][: self.num_tests]
        inputs += [_random_input(rng, kind) for _ in range(self.num_tests - len(inputs))]
        return FunctionTests(
            inputs=tuple((value,) for value in inputs), outputs=tuple(run(composition, value) for value in inputs)
        )


def start_kind(composition: Composition) -> Kind:
    """Return the type of value that a composition takes."""
    return IDIOMS[composition[0].split(":")[-1]].takes


def run(composition: Composition, value: Any) -> Any:
    """Compute the output of a composition for `value` with the references of its idioms."""
    for step in composition:
        modifier, _, idiom_name = step.rpartition(":")
        reference = IDIOMS[idiom_name].reference
        value = MODIFIERS[modifier].reference(reference, value) if modifier else reference(value)
    return value


def _words(composition: Composition, rng: Random) -> Iterator[str]:
    for step in composition:
        modifier, _, idiom_name = step.rpartition(":")
        if modifier:
            yield rng.choice(MODIFIERS[modifier].words)
        yield rng.choice(IDIOMS[idiom_name].words)


_EDGE_CASES: dict[Kind, tuple[Any, ...]] = {
    "list": ([], [0], [-4, -4, 7, 6]),
    "str": ("", "a", "banana"),
    "int": (0, -13, 1),
}


def _random_input(rng: Random, kind: Kind) -> Any:
    if kind == "list":
        return [rng.randint(-9, 9) for _ in range(rng.randint(4, 9))]
    if kind == "str":
        return "".join(rng.choice("abcdeilnorstu") for _ in range(rng.randint(4, 9)))
    return rng.randint(-999, 9999)
