"""Measure how fast `TraceInference-v0` steps as arrays, and under `gymnasium.vector.SyncVectorEnv`, in one run.

Both systems step the same number of environments over the same problem, from the same seed, under the same random
actions, which are drawn before the clock starts. Before any timing both are stepped side by side, and must return the
same observations, rewards, flags and infos. In each round every system runs once; a first round warms up and does not
count. Figures are medians over the rounds; a ratio is taken within a round. Steps are counted per environment, so 1024
environments stepped once are 1024 steps. Steps are given per second of wall clock and per second of the process's CPU
time; on a shared machine the latter shows what the code costs. The load average of the minute before and after shows
whether the machine was shared.

Problems: `embedded`, the environment's default (32 traces of the embedded domain, scored by the checkpoint in the
package), and `planted`, 2,000 traces of a random model with 48 latents and look-ahead features, whose tables exceed a
core's cache.

    OMP_NUM_THREADS=1 python benchmarks/envs.py
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from rich.console import Console
from rich.table import Table

from ra3gym.abstractions.inference.posterior import LatentChain
from ra3gym.abstractions.inference.problem import InferenceProblem, problem_from_chain
from ra3gym.abstractions.inference.sticky_prior import StickyPrior
from ra3gym.cli import PIPE_WIDTH
from ra3gym.envs.trace_inference.env import TraceInferenceEnv
from ra3gym.envs.trace_inference.problem import TraceInferenceConfig, load_problem
from ra3gym.envs.trace_inference.vector_env import TraceInferenceVectorEnv
from ra3gym.files import write_json
from ra3gym.runs.manifest import describe_start

RESULTS = Path(__file__).with_name("results")
OURS, PEER = "TraceInferenceVectorEnv", "SyncVectorEnv"
LATENTS = 48
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to measure, and where the results go."""

    output: Path = RESULTS / "envs.json"
    """Where the JSON goes."""
    rounds: int = 7
    """Rounds that count."""
    num_envs: tuple[int, ...] = (1, 32, 1024)
    """Numbers of environments."""
    seconds: float = 0.5
    """About how long one system steps in one round."""
    seed: int = 0
    """Of environments, actions and the planted problem."""


def planted_problem(seed: int, traces: int = 2000) -> InferenceProblem:
    """Traces of 3 to 15 lines with random emissions under 48 latents, about as peaked as a language model's."""
    rng = np.random.default_rng(seed)
    emissions = [rng.normal(-6.0, 2.0, size=(length, LATENTS)) for length in rng.integers(3, 16, size=traces)]
    return problem_from_chain(LatentChain.under(StickyPrior(0.7, LATENTS), emissions))


def make(system: str, problem: InferenceProblem, num_envs: int, mode: AutoresetMode) -> VectorEnv:
    """One of the two systems."""
    if system == OURS:
        return TraceInferenceVectorEnv(problem, num_envs, autoreset_mode=mode)
    return SyncVectorEnv([lambda: TraceInferenceEnv(problem)] * num_envs, autoreset_mode=mode)


def check_alike(problem: InferenceProblem, mode: AutoresetMode, seed: int, steps: int = 200) -> None:
    """Stop when the two systems return anything different."""
    systems = [make(name, problem, 8, mode) for name in (OURS, PEER)]
    actions = np.random.default_rng(seed).integers(problem.num_latents, size=(steps, 8))
    returned = [envs.reset(seed=seed) for envs in systems]
    for row in actions:
        if not data_equivalence(*returned):
            sys.exit(f"error: with {mode} the two systems return different things")
        returned = [envs.step(row) for envs in systems]


def timed(envs: VectorEnv, actions: np.ndarray, steps: int) -> Row:
    """Step that many times, repeating the actions in order."""
    rows = [actions[i % len(actions)] for i in range(steps)]
    cpu, wall = time.process_time(), time.perf_counter()
    for row in rows:
        envs.step(row)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done = steps * envs.num_envs
    return {"steps": done, "per_second": done / wall, "per_cpu_second": done / cpu}


def measure(problem: InferenceProblem, name: str, options: Options, console: Console) -> list[Row]:
    """All systems, modes and sizes on one problem."""
    modes = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
    rng = np.random.default_rng(options.seed)
    cases, passes = [], []
    for mode in modes:
        check_alike(problem, mode, options.seed)
        for num_envs in options.num_envs:
            actions = rng.integers(problem.num_latents, size=(500, num_envs))
            for system in (OURS, PEER):
                envs = make(system, problem, num_envs, mode)
                envs.reset(seed=options.seed)
                for row in actions[:20]:
                    envs.step(row)
                rate = timed(envs, actions, 20)["per_second"] / num_envs
                cases.append((system, mode, num_envs, envs, actions, max(10, round(rate * options.seconds))))
    for number in range(options.rounds + 1):
        for system, mode, num_envs, envs, actions, steps in cases:
            found = timed(envs, actions, steps if number else steps // 4 + 1)
            row = {"problem": name, "round": number, "system": system, "autoreset": mode.value, "num_envs": num_envs}
            passes.append(row | found)
        console.print(f"{name}: round {number} of {options.rounds}")
    return passes


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(passes: Sequence[Row]) -> list[Row]:
    """One entry per problem, mode and size: both systems' rates, and ours over the peer's within each round."""
    groups: dict[tuple[str, str, int], dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in passes:
        if row["round"]:
            groups[row["problem"], row["autoreset"], row["num_envs"]][row["round"]][row["system"]] = row
    summary = []
    for (problem, autoreset, num_envs), rounds in groups.items():
        entry: Row = {"problem": problem, "autoreset": autoreset, "num_envs": num_envs}
        for figure in ("per_second", "per_cpu_second"):
            entry[figure] = {name: spread(both[name][figure] for both in rounds.values()) for name in (OURS, PEER)}
        entry["ratio"] = spread(both[OURS]["per_second"] / both[PEER]["per_second"] for both in rounds.values())
        summary.append(entry)
    return summary


def show(summary: Sequence[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title="TraceInference-v0, environment steps per second: median over the rounds (least–most)")
    for column in ("problem", "autoreset", "E", "ours", "per CPU second", PEER, "per CPU second", "ours / peer"):
        table.add_column(column)
    for entry in summary:
        cells = [_text(entry[figure][name]) for name in (OURS, PEER) for figure in ("per_second", "per_cpu_second")]
        ratio = f"{entry['ratio']['median']:.1f}x ({entry['ratio']['min']:.1f}–{entry['ratio']['max']:.1f})"
        table.add_row(entry["problem"], entry["autoreset"], str(entry["num_envs"]), *cells, ratio)
    console.print(table)


def _text(values: dict[str, float]) -> str:
    scale, unit = (1e6, "M") if values["median"] >= 1e6 else (1e3, "k")
    median, low, high = (values[name] / scale for name in ("median", "min", "max"))
    return f"{median:.1f}{unit} ({low:.1f}–{high:.1f})"


def main(options: Options) -> None:
    """Measure, print the table and write the JSON."""
    if options.rounds < 1 or not options.num_envs or min(options.num_envs) < 1:
        sys.exit("error: rounds and num_envs must be at least 1")
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    kept = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    result: dict[str, Any] = {**describe_start(), "options": kept, "problems": {}}
    loads = [os.getloadavg()[0]]
    passes: list[Row] = []
    for name, problem in (
        ("embedded", load_problem(TraceInferenceConfig())),
        ("planted", planted_problem(options.seed)),
    ):
        result["problems"][name] = {
            "traces": problem.chain.num_traces,
            "lines": len(problem.chain.row_N),
            "latents": problem.num_latents,
            "observed_numbers": problem.observation_size,
        }
        passes += measure(problem, name, options, console)
    loads.append(os.getloadavg()[0])
    result |= {"load_average_before_and_after": loads, "passes": passes, "summary": summarize(passes)}
    show(result["summary"], console)
    console.print(f"load average before and after: {loads[0]:.1f}, {loads[1]:.1f} on {os.cpu_count()} cores")
    write_json(options.output, result)
    console.print(f"written to {options.output}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
