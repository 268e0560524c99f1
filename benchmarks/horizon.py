"""Measure how much shorter the horizon is latent by latent: the same programs on the same tasks, at both levels.

The expert at the token level writes the model's likeliest token until the program ends, latents included. The expert at
the latent level chooses the same latents, and the frozen decoder (greedy) writes the rest: the same program, so the
same reward, in fewer decisions. Decisions, durations (in tokens, the latent's own included) and gamma_bar, the mean of
gamma^duration over decisions, come with 95% bootstrap intervals over programs
(`ra3gym.abstractions.options.horizon.observed_horizon`). At the token level every duration is 1.

    OMP_NUM_THREADS=1 python benchmarks/horizon.py
    python benchmarks/horizon.py --model FOLDER --tasks mbpp --split test --limit 32 --output horizon.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from ra3gym import lm
from ra3gym.abstractions.options import Interval, observed_horizon
from ra3gym.cli import PIPE_WIDTH
from ra3gym.files import write_json
from ra3gym.runs.manifest import describe_start
from ra3gym.tasks import load_tasks

RESULTS = Path(__file__).with_name("results")
NO_MORE = -1


@dataclass(frozen=True)
class Options:
    """What to measure, and where the results go."""

    output: Path = RESULTS / "horizon.json"
    """Where the JSON goes."""
    model: str = "embedded"
    """A model that knows latents: "embedded", a folder or a hub id."""
    tasks: str = "idioms"
    """Of `ra3gym.tasks.load_tasks`."""
    split: str | None = "eval"
    """The part of them."""
    limit: int | None = None
    """Only the first so many tasks."""
    gamma: float = 0.99
    """Discount per token."""
    max_new_tokens: int = 192
    """Budget of a program."""
    num_envs: int = 32
    """Programs written at once."""


@dataclass
class Written:
    """One program: its reward, and the duration of each decision in tokens."""

    reward: float
    durations: list[int]
    program: str


def play(level: str, options: Options, loaded: lm.LoadedModel, plans: dict[str, list[int]]) -> dict[str, Written]:
    """Play every task once: latents by `plans`, which the token level fills in."""
    extra = {"decoder": "greedy"} if level == "LatentCode" else {"top_k": 1}
    tasks = load_tasks(options.tasks, split=options.split, limit=options.limit)
    shared = {"model": loaded, "tasks": tasks, "max_new_tokens": options.max_new_tokens}
    envs = gym.make_vec(
        f"ra3gym/{level}-v0", options.num_envs, vectorization_mode="vector_entry_point", **shared, **extra
    )
    latents = {token: latent for latent, token in enumerate(lm.latent_ids(loaded.tokenizer))}
    task_ids = [task.task_id for task in tasks]
    found: dict[str, Written] = {}
    for start in range(0, len(task_ids), options.num_envs):
        batch = task_ids[start : start + options.num_envs]
        wanted = batch + batch[:1] * (options.num_envs - len(batch))  # fills up the last batch
        _, info = envs.reset(options={"task_id": wanted})
        durations: list[list[int]] = [[] for _ in wanted]
        going = [e < len(batch) for e in range(options.num_envs)]
        while any(going):
            actions = [0] * options.num_envs
            for e, task_id in enumerate(wanted):
                if going[e] and level == "TokenCode":
                    token = int(info["candidates"][e, 0])
                    plans.setdefault(task_id, []).extend([latents[token]] if token in latents else [])
                elif going[e]:
                    # If a batch's rounding makes the programs differ, a plan can end before its program.
                    actions[e] = (plans[task_id][len(durations[e]) :] or [NO_MORE])[0]
            _, reward_E, terminated_E, truncated_E, info = envs.step(np.array(actions))
            for e in np.flatnonzero(going).tolist():
                durations[e].append(int(info["duration"]["tokens"][e]))
                if terminated_E[e] or truncated_E[e]:
                    going[e] = False
                    found[wanted[e]] = Written(float(reward_E[e]), durations[e], envs.unwrapped.programs[e])
    envs.close()
    return found


def described(programs: Sequence[Written], gamma: float) -> dict[str, Any]:
    """Summarize one level's programs."""
    horizon = observed_horizon([one.durations for one in programs], gamma)
    rewards = [one.reward for one in programs]
    names = ("decisions_per_episode", "mean_duration", "gamma_bar", "effective_horizon")
    figures = {name: asdict(getattr(horizon, name)) for name in names}
    return {"programs": len(programs), "mean_reward": float(np.mean(rewards)), **figures}


def main(options: Options) -> None:
    """Measure, print the table and write the JSON."""
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    loaded, plans = lm.load(options.model), dict[str, list[int]]()
    known = len(lm.latent_ids(loaded.tokenizer))
    if known < 2:
        raise SystemExit(
            f"error: model {options.model!r} has {known} latent tokens, and this benchmark needs latents: "
            "give a model that was mid-trained with them (ra3gym.lm.add_latents, mid_training.run), such as 'embedded'"
        )
    levels = {level: play(level, options, loaded, plans) for level in ("TokenCode", "LatentCode")}
    by_token, by_latent = levels["TokenCode"], levels["LatentCode"]
    kept = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    result: dict[str, Any] = {
        **describe_start(),
        "options": kept,
        "levels": {level: described(list(found.values()), options.gamma) for level, found in levels.items()},
        "same_program": sum(by_token[task].program == by_latent[task].program for task in by_token),
        "same_reward": sum(by_token[task].reward == by_latent[task].reward for task in by_token),
    }
    fewer = [len(by_token[task].durations) / len(by_latent[task].durations) for task in by_token]
    result["times_fewer_decisions"] = {
        "of_means": sum(len(one.durations) for one in by_token.values())
        / sum(len(one.durations) for one in by_latent.values()),
        "median": float(np.median(fewer)),
        "min": min(fewer),
        "max": max(fewer),
    }
    table = Table(title=f"{options.tasks}, split {options.split}: mean, 95% bootstrap interval over programs")
    for column in ("level", "reward", "decisions", "tokens a decision", "gamma_bar", "effective horizon"):
        table.add_column(column)
    for level, row in result["levels"].items():
        cells = [_text(row[name]) for name in ("decisions_per_episode", "mean_duration", "gamma_bar")]
        table.add_row(level, f"{row['mean_reward']:.3f}", *cells, _text(row["effective_horizon"]))
    console.print(table)
    console.print(
        f"{result['times_fewer_decisions']['of_means']:.1f} times fewer decisions; of {len(by_token)} programs "
        f"{result['same_program']} are the same, and {result['same_reward']} earn the same"
    )
    write_json(options.output, result)
    console.print(f"written to {options.output}", markup=False)


def _text(interval: dict[str, float]) -> str:
    one = Interval(**interval)
    return f"{one.value:.4g} ({one.low:.4g}–{one.high:.4g})"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
