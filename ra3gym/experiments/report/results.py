"""The result of one seed of one arm, as a JSON file in the run folder, and how an arm is shown."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from ra3gym.errors import RunFolderError
from ra3gym.experiments.report.statistics import steps_to_threshold
from ra3gym.files import write_json
from ra3gym.runs.folder import RunFolder
from ra3gym.runs.metrics import quote_name

Curve = list[tuple[float, float]]
Role = Literal["base", "baseline", "control", "ablation", "method", "upper bound", "other"]


@dataclass(frozen=True)
class ArmInfo:
    """How an arm is shown.

    Attributes:
        name: its name on the command line and in results.
        title: a few words for tables and charts.
        role: its part in the comparison. The first "method" is compared with all others.
        color: of its curves and bars, as "#rrggbb".
        description: one sentence.
    """

    name: str
    title: str
    role: Role
    color: str
    description: str


@dataclass(frozen=True)
class ProgramSample:
    """One sampled program.

    Attributes:
        prompt: the prompt of its task.
        segments: its lines in order, grouped by latent: (the latent's label or `None`, text).
        passed: whether it passed all tests.
        task_id: the id of its task.
    """

    prompt: str
    segments: tuple[tuple[str | None, str], ...]
    passed: bool
    task_id: str


@dataclass(frozen=True)
class UnitResult:
    """The result of one seed of one arm.

    Attributes:
        seed: the seed.
        arm: the arm's name.
        scores: shares are in [0, 1]. A missing key means that the score was not measured, `None` that the event did not
            happen. `pass@1`, `pass@8`, `pass@1_after` (after RLVR), `rlvr_area` (mean reward over RLVR),
            `steps_to_threshold` (`None`: not within the budget), `decisions` per episode, `tokens` trained on in
            mid-training, `seconds`, `nmi` (latents against planted labels).
        curves: (x, y) pairs with strictly increasing x: `midtrain_pass@1` and `midtrain_loss` over tokens,
            `rlvr_reward` over steps.
        samples: a few programs of the trained model.

    Raises:
        ValueError: a number that is not finite, or a curve whose x does not increase.
    """

    seed: int
    arm: str
    scores: dict[str, float | None]
    curves: dict[str, Curve] = field(default_factory=dict)
    samples: list[ProgramSample] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, score in self.scores.items():
            if score is not None and not math.isfinite(score):
                raise ValueError(f"score {name!r} of arm {self.arm!r}, seed {self.seed}, is {score}; use None")
        for name, curve in self.curves.items():
            if any(later[0] <= earlier[0] for earlier, later in pairwise(curve)):
                raise ValueError(f"curve {name!r} of arm {self.arm!r}, seed {self.seed}: x must increase strictly")
            if not all(math.isfinite(value) for point in curve for value in point):
                raise ValueError(f"curve {name!r} of arm {self.arm!r}, seed {self.seed}, has a non-finite point")


def save_result(run: RunFolder, result: UnitResult) -> Path:
    """Store one result as `results/seed-SEED/ARM.json`, in place of an earlier one, and return the path."""
    path = _file(run, result.seed, result.arm)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dataclasses.asdict(result))
    return path


def has_result(run: RunFolder, seed: int, arm: str) -> bool:
    """Return whether this seed of this arm has a stored result."""
    return _file(run, seed, arm).is_file()


def load_result(run: RunFolder, seed: int, arm: str) -> UnitResult:
    """Return a stored result; `RunFolderError` when it is missing or damaged."""
    return _read(_file(run, seed, arm))


def load_results(run: RunFolder) -> list[UnitResult]:
    """Return all stored results, sorted by seed and arm; `RunFolderError` names a damaged file."""
    results = [_read(file) for file in (run.path / "results").glob("seed-*/*.json")]
    return sorted(results, key=lambda result: (result.seed, result.arm))


def with_steps(result: UnitResult, threshold: float, window: int) -> UnitResult:
    """Return the result with `steps_to_threshold` counted on its `rlvr_reward` curve, if it has one."""
    if "rlvr_reward" not in result.curves:
        return result
    steps = steps_to_threshold(result.curves["rlvr_reward"], threshold, window)
    return dataclasses.replace(result, scores=result.scores | {"steps_to_threshold": steps})


def _file(run: RunFolder, seed: int, arm: str) -> Path:
    return run.path / "results" / f"seed-{seed}" / f"{quote_name(arm)}.json"


def _read(file: Path) -> UnitResult:
    try:
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return UnitResult(
            seed=stored["seed"],
            arm=stored["arm"],
            scores=stored["scores"],
            curves={name: [(x, y) for x, y in curve] for name, curve in stored["curves"].items()},
            samples=[
                ProgramSample(
                    prompt=sample["prompt"],
                    segments=tuple((label, text) for label, text in sample["segments"]),
                    passed=sample["passed"],
                    task_id=sample["task_id"],
                )
                for sample in stored["samples"]
            ],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{file} is not a readable result ({type(error).__name__}: {error}); delete it and resume the run"
        ) from error
