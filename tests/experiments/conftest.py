"""A synthetic run that looks like a real one: several arms and seeds, curves, censored steps, sampled programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ra3gym.experiments.report.results import ProgramSample, UnitResult, save_result
from ra3gym.runs.folder import RunFolder

MakeRun = Callable[..., RunFolder]

# arm: pass@1 before RLVR, final reward, RLVR steps at half height, decisions per episode
PROFILE = {
    "base": (0.01, 0.02, 90.0, 96.0),
    "ntp": (0.06, 0.22, 80.0, 96.0),
    "pause": (0.05, 0.18, 85.0, 96.0),
    "shuffled": (0.04, 0.12, 90.0, 7.4),
    "latents": (0.12, 0.42, 60.0, 6.1),
    "pseudo": (0.20, 0.74, 46.0, 96.0),
    "ra3": (0.24, 0.88, 24.0, 6.2),
    "ra3-shuffled": (0.14, 0.55, 60.0, 7.0),
    "oracle": (0.36, 0.93, 18.0, 5.0),
}
TOKENS = 2_000_000
BUDGET = 100
THRESHOLD = 0.6


@dataclass
class StudyConfig:
    seeds: tuple[int, ...]
    documented: float = 0.3
    compositions: int = 5
    tokens: int = TOKENS
    rlvr_steps: int = BUDGET
    threshold: float = THRESHOLD
    switch_cost: float = 0.05
    codebook: int = 16


def _result(seed: int, arm: str) -> UnitResult:
    rng = np.random.default_rng([seed, sorted(PROFILE).index(arm)])
    before, final, half, decisions = PROFILE[arm]
    before = float(np.clip(before * rng.normal(1, 0.12), 0, 1))
    final = float(np.clip(final * rng.normal(1, 0.05), 0, 0.99))
    half *= rng.normal(1, 0.1)
    steps = np.arange(1, BUDGET + 1)
    height = before + (final - before) / (1 + np.exp(-(steps - half) / 9))
    reward = np.clip(height + rng.normal(0, 0.015, BUDGET), 0, 1)
    reached = np.flatnonzero(reward >= THRESHOLD)
    tokens = np.linspace(0, TOKENS, 9)
    learning = before / (1 + np.exp(-(tokens / TOKENS - 0.55) * 9)) * 1.02
    loss = 0.6 + 1.5 * np.exp(-tokens / 500_000)
    return UnitResult(
        seed=seed,
        arm=arm,
        scores={
            "pass@1": before,
            "pass@8": min(1.0, before * 2.6),
            "rlvr_area": float(reward.mean()),
            "steps_to_threshold": float(steps[reached[0]]) if reached.size else None,
            "pass@1_after": float(reward[-10:].mean()),
            "decisions": float(decisions * rng.normal(1, 0.03)),
            "tokens": float(TOKENS),
            "seconds": float(rng.normal(210, 12)),
        },
        curves={
            "midtrain_pass@1": [(float(x), float(y)) for x, y in zip(tokens, learning, strict=True)],
            "midtrain_loss": [(float(x), float(y)) for x, y in zip(tokens, loss, strict=True)],
            "rlvr_reward": [(float(x), float(y)) for x, y in zip(steps, reward, strict=True)],
        },
        samples=_samples(seed, arm),
    )


def _samples(seed: int, arm: str) -> list[ProgramSample]:
    prompt = "# keep even, negate, running total, drop repeats, largest first\ndef f(xs):\n"
    latent = arm in ("latents", "ra3", "ra3-shuffled", "oracle", "shuffled")
    lines: list[tuple[str, str]] = [
        ("even", "    out = []\n    for x in xs:\n        if x % 2 == 0:\n            out.append(x)\n"),
        ("neg", "    out = [-x for x in out]\n"),
        ("cumsum", "    total = 0\n    sums = []\n    for x in out:\n        total += x\n        sums.append(total)\n"),
        ("dedupe", "    out = list(dict.fromkeys(sums))\n"),
        ("sort", "    return sorted(out, reverse=True)\n"),
    ]
    if latent:
        segments: tuple[tuple[str | None, str], ...] = tuple(lines)
    else:
        segments = ((None, "".join(text for _, text in lines)),)
    wrong = ((None, "    return [x for x in xs if x < 3 and '<b>' != \"&amp;\"]\n"),)
    strong = PROFILE[arm][0] > 0.15
    return [
        ProgramSample(prompt, segments, passed=strong, task_id="idioms/eval/17"),
        ProgramSample(
            "# square, <script>alert('x')</script>\ndef f(xs):\n",
            segments if arm == "oracle" else wrong,
            passed=arm == "oracle",
            task_id="idioms/eval/42",
        ),
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(seeds=(10, 11, 12), arms=tuple(PROFILE))` stores a synthetic study's results in a new run folder."""

    def make(
        seeds: Sequence[int] = (10, 11, 12), arms: Sequence[str] = tuple(PROFILE), root: Path = tmp_path
    ) -> RunFolder:
        run = RunFolder.create(root, "quickstart", StudyConfig(seeds=tuple(seeds)))
        for seed in seeds:
            for arm in arms:
                save_result(run, _result(seed, arm))
        run.write_summary({"threshold": THRESHOLD})
        return run

    return make
