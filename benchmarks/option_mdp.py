"""Measure the speed of OptionMDP-v0, and the two theorems of RA3 on random instances with known optima.

*Speed*: `OptionMDPVectorEnv`, and `gymnasium.vector.SyncVectorEnv` over single environments, from the same seed, under
the same random actions. Before any timing both are stepped side by side and must return the same. Each round times both
in turn; a first round warms up and does not count. A step is one environment's decision, so 1024 environments stepped
once are 1024 steps. Steps are given per second of the process's CPU time and per second of wall clock, which other work
on the machine slows down. Figures are medians over rounds.

*Convergence*: iterations of value iteration from V = 0 until `max |V - V*| <= eps`, over options and over primitives of
the same instance at the same gamma, with the number that the theorem allows.

*Pruning*: tasks are drawn from a family, and each eliminates the sets of actions that fail on it. Measured is how often
an (eps, sigma)-suboptimal set is left after a number of samples, over a grid of sizes, and the number of samples after
which that happens in at most delta of the draws. The theorem's number is `|Z_eps| log(|Z| / delta) / sigma`. There are
two families. `planted`: MDPs that share options; each task needs its own option, and the rarest task has probability
sigma. `independent`: one-step tasks in which each action outside Z_eps succeeds with a probability such that every set
of |Z_eps| of them fails with probability sigma. That is close to the theorem's worst case: many suboptimal sets that
fail on different samples.


    OMP_NUM_THREADS=1 python benchmarks/option_mdp.py

With matplotlib installed, plots go beside the JSON as PNG.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import SyncVectorEnv, VectorEnv
from rich.console import Console
from rich.table import Table

from ra3gym.abstractions.options import exact_horizon, random_option_mdp, random_task_family
from ra3gym.abstractions.pruning import candidate_errors, candidate_sets, samples_needed, smallest_good_set
from ra3gym.cli import PIPE_WIDTH
from ra3gym.envs.option_mdp.env import OptionMDPEnv
from ra3gym.envs.option_mdp.vector_env import OptionMDPVectorEnv
from ra3gym.files import write_json
from ra3gym.runs.manifest import describe_start

RESULTS = Path(__file__).with_name("results")
OURS, PEER = "OptionMDPVectorEnv", "SyncVectorEnv"
DURATIONS = (1.0, 1.25, 2.0, 4.0, 8.0)
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to measure, and where the results go."""

    output: Path = RESULTS / "option_mdp.json"
    """Where the JSON goes; plots beside it."""
    rounds: int = 5
    """Rounds of the speed test that count."""
    num_envs: tuple[int, ...] = (1, 32, 1024)
    """Numbers of environments."""
    seconds: float = 0.3
    """About how long one system steps in one round."""
    instances: int = 1000
    """Random instances for the convergence theorem."""
    draws: int = 1000
    """Sets of samples drawn for each cell of the pruning grid."""
    delta: float = 0.1
    """Of the pruning theorem."""
    seed: int = 0
    """Of everything."""


# Speed


def make(system: str, actions: str, num_envs: int) -> VectorEnv:
    """One of the two systems, over the default instance."""
    if system == OURS:
        return OptionMDPVectorEnv(num_envs=num_envs, actions=actions)
    return SyncVectorEnv([lambda: OptionMDPEnv(actions=actions)] * num_envs)


def check_alike(actions: str, seed: int) -> None:
    """Stop when the two systems return anything different."""
    systems = [make(name, actions, 8) for name in (OURS, PEER)]
    rng = np.random.default_rng(seed)
    returned = [envs.reset(seed=seed) for envs in systems]
    for _ in range(300):
        if not data_equivalence(*returned, exact=True):
            sys.exit(f"error: with actions={actions!r} the two systems return different things")
        chosen = rng.integers(systems[0].single_action_space.n, size=8)
        returned = [envs.step(chosen) for envs in systems]


def timed(envs: VectorEnv, actions: np.ndarray, steps: int) -> dict[str, float]:
    """Step that many times, repeating the actions in order."""
    rows = [actions[i % len(actions)] for i in range(steps)]
    cpu, wall = time.process_time(), time.perf_counter()
    for row in rows:
        envs.step(row)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"per_second": steps * envs.num_envs / wall, "per_cpu_second": steps * envs.num_envs / cpu}


def measure_speed(options: Options, console: Console) -> list[Row]:
    """Both systems over all sets of actions and sizes."""
    rng = np.random.default_rng(options.seed)
    cases = []
    for actions in ("primitives", "options", "both"):
        check_alike(actions, options.seed)
        for num_envs in options.num_envs:
            for system in (OURS, PEER):
                envs = make(system, actions, num_envs)
                envs.reset(seed=options.seed)
                chosen = rng.integers(envs.single_action_space.n, size=(200, num_envs))
                timed(envs, chosen, 10)
                rate = timed(envs, chosen, 20)["per_cpu_second"] / num_envs
                cases.append((actions, num_envs, system, envs, chosen, max(10, round(rate * options.seconds))))
    found: dict[tuple[str, int], dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for number in range(options.rounds + 1):
        for actions, num_envs, system, envs, chosen, steps in cases:
            passed = timed(envs, chosen, steps)
            if number:
                found[actions, num_envs][system].append(passed)
        console.print(f"speed: round {number} of {options.rounds}")
    rows = []
    for (actions, num_envs), systems in found.items():
        row: Row = {"actions": actions, "num_envs": num_envs}
        for system, passes in systems.items():
            row[system] = {
                figure: statistics.median(one[figure] for one in passes) for figure in ("per_second", "per_cpu_second")
            }
        row["ratio"] = row[OURS]["per_cpu_second"] / row[PEER]["per_cpu_second"]
        rows.append(row)
    return rows


# Convergence


def measure_convergence(options: Options) -> list[Row]:
    """Iterations over options and primitives, observed and allowed, for each instance."""
    rows = []
    for i in range(options.instances):
        duration, gamma = DURATIONS[i % 5], (0.8, 0.9, 0.95, 0.98)[i % 4]
        mdp = random_option_mdp(
            options.seed + i, num_states=16, mean_duration=duration, gamma=gamma, num_terminals=i % 3
        )
        row: Row = {"mean_duration": duration, "gamma": gamma, "num_terminals": i % 3}
        for actions in ("options", "primitives", "both"):
            horizon = exact_horizon(mdp, actions, eps=1e-3)
            row[actions] = {
                "gamma_bar": horizon.gamma_bar,
                "predicted": horizon.predicted_iterations,
                "observed": horizon.observed_iterations,
            }
        rows.append(row)
    return rows


def summarize_convergence(rows: Sequence[Row]) -> list[Row]:
    """By mean duration: medians, the share within the bound, and how often options need more than primitives."""
    summary = []
    for duration in DURATIONS:
        chosen = [row for row in rows if row["mean_duration"] == duration]
        ratio = [row["options"]["observed"] / row["primitives"]["observed"] for row in chosen]
        both = [row["both"]["observed"] / row["primitives"]["observed"] for row in chosen]
        tight = [row["options"]["observed"] / row["options"]["predicted"] for row in chosen]
        summary.append(
            {
                "mean_duration": duration,
                "instances": len(chosen),
                "within_bound": sum(one <= 1.0 for one in tight),
                "observed_over_predicted": {"median": statistics.median(tight), "max": max(tight)},
                "options_over_primitives": {"median": statistics.median(ratio), "min": min(ratio), "max": max(ratio)},
                "both_over_primitives": {"median": statistics.median(both), "min": min(both), "max": max(both)},
                "options_need_more": sum(one > 1.0 for one in ratio),
            }
        )
    return summary


# Pruning


def measure_pruning(options: Options, console: Console) -> list[Row]:
    """Failures of elimination against the number of samples, over a grid of sizes and rates."""
    rows = []
    rng = np.random.default_rng(options.seed)
    for num_tasks in (2, 3, 4):
        for num_options in (6, 9, 12):
            tasks = random_task_family(options.seed + num_tasks, num_tasks=num_tasks, num_options=num_options)
            eps = 0.02 * float(np.mean([task.start_S @ task.model.reward_ZS.max(axis=0) for task in tasks]))
            size = len(smallest_good_set(tasks, eps))
            is_wrong = candidate_errors(tasks, candidate_sets(num_options, size)) > eps
            for sigma in (0.05, 0.1, 0.2):
                last_gone, sets = _planted(options, rng, is_wrong, sigma)
                rows.append(
                    {"family": "planted", "eps": eps} | _cell(options, last_gone, sets, num_options, size, sigma)
                )
        console.print(f"pruning: families of {num_tasks} tasks done")
    for size in (1, 2, 3):
        for num_actions in (8, 16, 24):
            for sigma in (0.05, 0.1, 0.2):
                last_gone, sets = _independent(options, rng, num_actions, size, sigma)
                rows.append({"family": "independent"} | _cell(options, last_gone, sets, num_actions, size, sigma))
    return rows


def _planted(options: Options, rng: np.random.Generator, is_wrong: np.ndarray, sigma: float) -> tuple[np.ndarray, int]:
    """Return, for each draw, after how many samples the last suboptimal set was gone; and the number of such sets.

    The rarest task has probability sigma, the others share the rest. `is_wrong` has a row per set, a column per task.
    """
    num_tasks = is_wrong.shape[1]
    share = np.append(np.full(num_tasks - 1, (1.0 - sigma) / (num_tasks - 1)), sigma)
    is_suboptimal = is_wrong @ share >= sigma - 1e-12
    # A set is eliminated by the first sample of a task that it is wrong for.
    size = (options.draws, 2000)
    first_seen = np.stack([rng.choice(num_tasks, size=size, p=share) == t for t in range(num_tasks)], axis=2)
    first_seen = np.where(first_seen.any(axis=1), first_seen.argmax(axis=1) + 1, 2001)
    gone_after = np.where(is_wrong, first_seen[:, None, :], 2001).min(axis=2)
    return gone_after[:, is_suboptimal].max(axis=1), int(is_suboptimal.sum())


def _independent(
    options: Options, rng: np.random.Generator, num_actions: int, size: int, sigma: float
) -> tuple[np.ndarray, int]:
    """Return the same as `_planted`. The first `size` actions are Z_eps, of which one always succeeds."""
    others = candidate_sets(num_actions - size, size)
    set_bits = (1 << others).sum(axis=1)
    probability = 1.0 - sigma ** (1.0 / size)
    samples = 2 * samples_needed(size, num_actions, sigma=sigma, delta=options.delta)
    last = []
    for _ in range(options.draws):
        succeeds = rng.random((samples, num_actions - size)) < probability
        sample_bits = succeeds @ (1 << np.arange(num_actions - size))
        eliminates = (sample_bits[:, None] & set_bits) == 0
        gone_after = np.where(eliminates.any(axis=0), eliminates.argmax(axis=0) + 1, samples + 1)
        last.append(int(gone_after.max()))
    return np.array(last), len(others)


def _cell(options: Options, last_gone: np.ndarray, sets: int, num_actions: int, size: int, sigma: float) -> Row:
    """Return the figures of one cell of the grid."""
    needed = samples_needed(size, num_actions, sigma=sigma, delta=options.delta)
    measured = int(np.ceil(np.quantile(last_gone, 1.0 - options.delta, method="inverted_cdf")))
    grid = sorted({max(1, round(needed * share)) for share in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)})
    return {
        "num_actions": num_actions,
        "size": size,
        "sigma": sigma,
        "suboptimal_sets": sets,
        "predicted_samples": needed,
        "measured_samples": measured,
        "failures_at_predicted": float((last_gone > needed).mean()),
        "failures": {str(n): float((last_gone > n).mean()) for n in grid},
    }


# Showing


def show(result: Row, console: Console) -> None:
    """Print the three tables."""
    speed = Table(title="OptionMDP-v0: environment steps per CPU second (median)")
    for column in ("actions", "N", "ours", PEER, "ours / peer"):
        speed.add_column(column)
    for row in result["speed"]:
        ours, peer = (row[name]["per_cpu_second"] for name in (OURS, PEER))
        cells = (f"{ours / 1e6:.2f}M", f"{peer / 1e3:.0f}k", f"{row['ratio']:.0f}x")
        speed.add_row(row["actions"], str(row["num_envs"]), *cells)
    console.print(speed)
    convergence = Table(title="Value iteration over options: iterations to eps = 1e-3")
    for column in ("mean duration", "instances", "within bound", "/ allowed", "/ primitives'", "need more"):
        convergence.add_column(column)
    for row in result["convergence"]["summary"]:
        tight, ratio = row["observed_over_predicted"], row["options_over_primitives"]
        convergence.add_row(
            str(row["mean_duration"]),
            str(row["instances"]),
            str(row["within_bound"]),
            f"{tight['median']:.2f} (at most {tight['max']:.2f})",
            f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})",
            str(row["options_need_more"]),
        )
    console.print(convergence)
    pruning = Table(title="Elimination: samples until suboptimal sets survive in at most delta of the draws")
    for column in ("family", "|Z_eps|", "|Z|", "sigma", "theorem", "measured", "failures at the theorem's"):
        pruning.add_column(column)
    for row in result["pruning"]:
        figures = (row["size"], row["num_actions"], row["sigma"], row["predicted_samples"], row["measured_samples"])
        pruning.add_row(row["family"], *map(str, figures), f"{row['failures_at_predicted']:.3f}")
    console.print(pruning)


def plot(result: Row, folder: Path) -> list[Path]:
    """Two pictures, where matplotlib is installed."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return []
    figure, axis = plt.subplots(figsize=(6, 4))
    for duration in DURATIONS:
        chosen = [row for row in result["convergence"]["instances"] if row["mean_duration"] == duration]
        ratio = np.sort([row["options"]["observed"] / row["primitives"]["observed"] for row in chosen])
        axis.step(ratio, np.arange(1, len(ratio) + 1) / len(ratio), label=f"mean duration {duration}")
    axis.set(xlabel="iterations over options / over primitives", ylabel="share of instances")
    axis.legend()
    figure.tight_layout()
    paths = [folder / "option_mdp_convergence.png", folder / "option_mdp_pruning.png"]
    figure.savefig(paths[0], dpi=120)
    figure, axis = plt.subplots(figsize=(6, 4))
    for row in result["pruning"]:
        share = [int(n) / row["predicted_samples"] for n in row["failures"]]
        color = "tab:blue" if row["family"] == "planted" else "tab:red"
        axis.plot(share, list(row["failures"].values()), color=color, alpha=0.4)
    for family, color in (("planted", "tab:blue"), ("independent", "tab:red")):
        axis.plot([], [], color=color, label=family)
    axis.axhline(result["options"]["delta"], color="black", linestyle="--", label="delta")
    axis.set(xlabel="samples / the theorem's number", ylabel="share of draws that leave a suboptimal set")
    axis.legend()
    figure.tight_layout()
    figure.savefig(paths[1], dpi=120)
    return paths


def main(options: Options) -> None:
    """Measure, print the tables, write the JSON and, if possible, the plots."""
    if min(options.rounds, options.instances, options.draws, *options.num_envs) < 1:
        sys.exit("error: rounds, instances, draws and num_envs must be at least 1")
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    kept = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    result: Row = {**describe_start(), "options": kept}
    loads = [os.getloadavg()[0]]
    result["speed"] = measure_speed(options, console)
    loads.append(os.getloadavg()[0])
    result["load_average_before_and_after_speed"] = loads
    rows = measure_convergence(options)
    result["convergence"] = {"summary": summarize_convergence(rows), "instances": rows}
    result["pruning"] = measure_pruning(options, console)
    show(result, console)
    plots = plot(result, options.output.parent)
    # The summary says what the instances say; one by one they would fill the file.
    del result["convergence"]["instances"]
    write_json(options.output, result)
    for path in (options.output, *plots):
        console.print(f"written to {path}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
