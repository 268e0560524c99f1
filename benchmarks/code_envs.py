"""Measure how fast programs are written through the environments, and by plain generation, in one run.

The systems share the embedded checkpoint, the tasks and the budget; each program is graded when it ends:

- `vector`: the vector form of `LatentCode-v0` and `TokenCode-v0`, autoreset in the same step.
- `sync`: `gymnasium.vector.SyncVectorEnv` over as many single environments.
- `generate`: no environment; batches of E prompts through the package's own sampler (`ra3gym.lm.sampling`), all graded
  together after each batch. The vector forms are compared with this.
- `transformers`: the same with `model.generate` of transformers.

The agents draw from the log-probabilities in the infos, so that every system writes the same distribution of programs,
except that programs of `LatentCode-v0` begin with a latent. The time of drawing counts. In each round every system runs
at every E, for at least `seconds`. A first round warms up (judges start, episodes get out of step) and does not count.
Figures are medians over the rounds; a ratio is taken within a round. Episodes that have not ended when the time is up
are not counted, but their tokens are. The load average of the minute before and after shows whether the machine was
shared.

    OMP_NUM_THREADS=1 python benchmarks/code_envs.py
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from rich.console import Console
from rich.table import Table

from ra3gym import lm
from ra3gym.cli import PIPE_WIDTH
from ra3gym.envs.code.problem import CodeConfig, CodeProblem
from ra3gym.files import write_json
from ra3gym.lm.sampling import generate
from ra3gym.runs.manifest import describe_start

RESULTS = Path(__file__).with_name("results")
LEVELS = ("LatentCode", "TokenCode")
Row = dict[str, Any]
Chunk = tuple[int, int]
"""How many episodes ended and how many tokens were written in one piece of work."""


@dataclass(frozen=True)
class Options:
    """What to measure, and where the results go."""

    output: Path = RESULTS / "code_envs.json"
    """Where the JSON goes."""
    rounds: int = 5
    """Rounds that count."""
    num_envs: tuple[int, ...] = (1, 8, 32, 128)
    """Numbers of environments, and sizes of generated batches."""
    sync_num_envs: tuple[int, ...] = (1, 8, 32)
    """Numbers of environments under `SyncVectorEnv`, which does not gain by more."""
    seconds: float = 4.0
    """How long a system works in one round, at least."""
    max_new_tokens: int = 192
    """Budget of a program."""
    judge_workers: int = 1
    """Processes that grade, in every system."""
    device: str = "cpu"
    """Where the model is."""
    seed: int = 0
    """Of environments, actions and samples."""


def drawn(logprobs_EA: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one action per environment by the model's own probabilities."""
    reached_EA = np.exp(logprobs_EA.astype(np.float64)).cumsum(axis=1)
    target_E1 = rng.random((len(reached_EA), 1)) * reached_EA[:, -1:] * (1 - 1e-12)
    return (reached_EA <= target_E1).sum(axis=1)


def stepping(envs: VectorEnv, seed: int) -> Iterator[Chunk]:
    """One chunk per step."""
    rng = np.random.default_rng(seed)
    _, info = envs.reset(seed=seed)
    while True:
        _, _, terminated_E, truncated_E, info = envs.step(drawn(_stacked(info["logprobs"]), rng))
        ended_E = terminated_E | truncated_E
        tokens = int(np.sum(info["duration"]["tokens"])) if "duration" in info else 0
        if ended_E.any():
            tokens += int(np.sum(info["final_info"]["duration"]["tokens"]))
        yield int(ended_E.sum()), tokens


def _stacked(column: np.ndarray) -> np.ndarray:
    """`SyncVectorEnv` keeps arrays as objects where it does not know their type."""
    return np.stack(list(column)) if column.dtype == object else column


def generating(problem: CodeProblem, size: int, seed: int, write: Callable[[list[int]], list[list[int]]]) -> Iterator:
    """One chunk per batch."""
    rng = np.random.default_rng(seed)
    while True:
        tasks = [problem.draw_task(rng) for _ in range(size)]
        written = write(tasks)
        pairs = zip(tasks, written, strict=True)
        for submission in [problem.submit(task, tokens, len(tokens)) for task, tokens in pairs]:
            submission.result()
        yield size, sum(map(len, written))


def own_sampler(problem: CodeProblem, seed: int) -> Callable[[list[int]], list[list[int]]]:
    """Completions from `ra3gym.lm.sampling`."""
    generator = torch.Generator(device=problem.loaded.model.device).manual_seed(seed)

    def write(tasks: list[int]) -> list[list[int]]:
        return generate(
            problem.loaded.model,
            [problem.prompts[task] for task in tasks],
            max_new_tokens=problem.config.max_new_tokens,
            eos_id=problem.end_ids,
            pad_id=problem.pad_id,
            generator=generator,
            allowed_mask_V=problem.writable_V,
        ).completions()

    return write


def transformers_sampler(problem: CodeProblem, seed: int) -> Callable[[list[int]], list[list[int]]]:
    """Completions from `model.generate`."""
    torch.manual_seed(seed)
    model, pad = problem.loaded.model, problem.pad_id
    banned = torch.nonzero(~problem.writable_V).flatten().tolist()

    def write(tasks: list[int]) -> list[list[int]]:
        prompts = [problem.prompts[task] for task in tasks]
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=problem.config.max_new_tokens,
                eos_token_id=sorted(problem.end_ids),
                pad_token_id=pad,
                suppress_tokens=banned or None,
            )[:, longest:].tolist()
        return [_until_end(row, problem.end_ids) for row in found]

    return write


def _until_end(tokens: Sequence[int], end_ids: Iterable[int]) -> list[int]:
    ends = [i for i, token in enumerate(tokens) if token in set(end_ids)]
    return list(tokens[: ends[0] + 1]) if ends else list(tokens)


def systems(options: Options) -> Iterator[tuple[Row, Iterator[Chunk], Callable[[], None]]]:
    """Every system at every size: its name, its work, and what ends it."""
    loaded = lm.load("embedded", device=options.device)
    budget: Row = {"max_new_tokens": options.max_new_tokens, "judge_workers": options.judge_workers}
    for level in LEVELS:
        for size in options.num_envs:
            envs: VectorEnv = gym.make_vec(
                f"ra3gym/{level}-v0",
                num_envs=size,
                vectorization_mode="vector_entry_point",
                model=loaded,
                autoreset_mode=AutoresetMode.SAME_STEP,
                **budget,
            )
            yield {"system": f"{level}, vector", "size": size}, stepping(envs, options.seed), envs.close
        for size in options.sync_num_envs:

            def make(level: str = level) -> gym.Env:
                return gym.make(f"ra3gym/{level}-v0", model=loaded, **budget)

            sync = SyncVectorEnv([make] * size, autoreset_mode=AutoresetMode.SAME_STEP)
            yield {"system": f"{level}, sync", "size": size}, stepping(sync, options.seed), sync.close
    for name, sampler in (("generate", own_sampler), ("transformers", transformers_sampler)):
        for size in options.num_envs:
            problem = CodeProblem(CodeConfig(loaded, **budget))
            work = generating(problem, size, options.seed, sampler(problem, options.seed))
            yield {"system": name, "size": size}, work, problem.close


def timed(work: Iterator[Chunk], seconds: float) -> Row:
    """Go on until the time is up."""
    episodes = tokens = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        ended, written = next(work)
        episodes, tokens = episodes + ended, tokens + written
    return {
        "episodes": episodes,
        "tokens": tokens,
        "seconds": passed,
        "episodes_per_second": episodes / passed,
        "tokens_per_second": tokens / passed,
    }


def summarize(passes: Sequence[Row]) -> list[Row]:
    """One entry per system and size: rates, and within each round the gain over size 1 and the share of `generate`."""
    at: dict[tuple[str, int], dict[int, Row]] = {}
    for row in passes:
        if row["round"]:
            at.setdefault((row["system"], row["size"]), {})[row["round"]] = row
    summary = []
    for (system, size), rounds in at.items():
        entry: Row = {"system": system, "size": size}
        for figure in ("episodes_per_second", "tokens_per_second"):
            entry[figure] = spread(row[figure] for row in rounds.values())
        for name, other in (("over_1", (system, 1)), ("of_generate", ("generate", size))):
            if other in at:
                entry[name] = spread(
                    row["tokens_per_second"] / at[other][number]["tokens_per_second"] for number, row in rounds.items()
                )
        summary.append(entry)
    return summary


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(summary: Sequence[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title="Programs written and graded: median over the rounds (least–most)")
    for column in ("system", "E", "episodes/s", "tokens/s", "times E = 1", "of generate"):
        table.add_column(column)
    for entry in summary:
        table.add_row(
            entry["system"],
            str(entry["size"]),
            _text(entry["episodes_per_second"], ".1f"),
            _text(entry["tokens_per_second"], ",.0f"),
            _text(entry["over_1"], ".1f") if "over_1" in entry else "",
            _text(entry["of_generate"], ".0%") if "of_generate" in entry else "",
        )
    console.print(table)


def _text(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})"


def main(options: Options) -> None:
    """Measure, print the table and write the JSON."""
    if options.rounds < 1 or min(options.num_envs, default=0) < 1 or options.seconds <= 0:
        sys.exit("error: rounds, num_envs and seconds must be positive")
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    kept = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    result: Row = {**describe_start(), "options": kept, "threads": torch.get_num_threads()}
    loads = [os.getloadavg()[0]]
    cases = list(systems(options))
    passes: list[Row] = []
    try:
        for number in range(options.rounds + 1):
            for name, work, _ in cases:
                passes.append({"round": number, **name, **timed(work, options.seconds)})
            console.print(f"round {number} of {options.rounds}")
    finally:
        for _, work, close in cases:
            work.close()
            close()
    loads.append(os.getloadavg()[0])
    result |= {"load_average_before_and_after": loads, "passes": passes, "summary": summarize(passes)}
    show(result["summary"], console)
    console.print(f"load average before and after: {loads[0]:.1f}, {loads[1]:.1f} on {os.cpu_count()} cores")
    write_json(options.output, result)
    console.print(f"written to {options.output}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
