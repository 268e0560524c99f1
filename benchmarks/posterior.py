"""Measure how fast exact inference is, compared to hmmlearn's C and a vectorized numpy in the same run.

The input is the log emissions of a batch of traces; the output is posterior marginals and the log evidence of each
trace. All systems infer the same traces in turn, in each round; round 0 warms up. Figures are medians over the rounds,
of CPU time on one thread and of wall time. Ratios are taken within a round, so that a busy machine distorts them
little.

- ra3gym: `posterior` of a chain. "chain included" makes and checks the `LatentChain` as well, "memory used again"
  passes `out=`.
- torch: `sticky_log_evidence` and its gradient, on the CPU and, where there is one, on a GPU (wall time counts there).
- hmmlearn: `_hmmc.forward_scaling` and `backward_scaling` on probabilities, one trace after the other, and its own
  normalization, as in its `fit`; and the same in logarithms, the reference for errors. It accepts any K x K transition,
  O(T K^2).
- numpy: the recursions of `ra3gym.abstractions.inference.posterior`, O(T K), all traces at once.

    pip install 'ra3gym[benchmarks]'
    OMP_NUM_THREADS=1 python benchmarks/posterior.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.special import log_softmax

from ra3gym.abstractions.inference.posterior import FloatArray, LatentChain, posterior
from ra3gym.abstractions.inference.torch_evidence import sticky_log_evidence
from ra3gym.files import write_json
from ra3gym.runs.manifest import describe_start

RESULTS = Path(__file__).with_name("results")
ALPHA = 0.7
WIDTH = 140
"""Columns of the tables when the output is no terminal."""
OURS = "ra3gym"
SCALING, LOGARITHMS = "hmmlearn, scaling", "hmmlearn, logarithms"
Inferred = tuple[FloatArray, FloatArray]
"""Log evidence (B,) in nats, marginals (B, T, K)."""
Infer = Callable[[], Inferred]
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to measure, and where to write results."""

    output: Path | None = None
    """The JSON file; `results/posterior.json` beside this script by default."""
    rounds: int = 7
    """Rounds that count."""
    traces: int = 1024
    """Traces in the batch."""
    lines: int = 32
    """Lines of each trace."""
    latents: tuple[int, ...] = (8, 32, 64, 128)
    """Sizes of the codebook."""
    sweep: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Lines of each trace in the second measurement, of ours only."""
    sweep_latents: int = 32
    """Size of the codebook in the second measurement."""
    hmmlearn: bool = True
    """Whether to measure hmmlearn; without it, numpy is the reference for errors."""
    seed: int = 0
    """Of the emissions."""
    quick: bool = False
    """A smoke run: one round, 64 traces, two sizes."""


# --- The systems ------------------------------------------------------------------------------------------------------


def draw_emissions(traces: int, lines: int, latents: int, seed: int) -> FloatArray:
    """Draw log emissions (B, T, K), with a standard deviation of 3 nats before they are normalized over latents."""
    return np.asarray(log_softmax(np.random.default_rng(seed).normal(0.0, 3.0, (traces, lines, latents)), axis=2))


def as_chain(log_emission_BTK: FloatArray) -> LatentChain:
    B, T, K = log_emission_BTK.shape
    return LatentChain(
        log_emission_UK=log_emission_BTK.reshape(-1, K),
        row_N=np.arange(B * T),
        keep_N=np.full(B * T, ALPHA),
        fresh_PK=np.full((1, K), 1.0 / K),
        fresh_row_M=np.zeros(B, dtype=np.int64),
        offsets=np.arange(0, B * T + 1, T),
    )


def numpy_posterior(log_emission_BTK: FloatArray) -> Inferred:
    """Forward-backward in numpy, O(T K), each step over all traces, written for speed."""
    B, T, K = log_emission_BTK.shape
    highest_BT = log_emission_BTK.max(axis=2)
    q_TBK = np.empty((T, B, K))
    np.subtract(log_emission_BTK.transpose(1, 0, 2), highest_BT.T[:, :, None], out=q_TBK)
    np.exp(q_TBK, out=q_TBK)
    marginal_TBK = np.empty((T, B, K))
    total_TB = np.empty((T, B))
    predicted_BK = np.full((B, K), 1.0 / K)
    for t in range(T):
        np.multiply(q_TBK[t], predicted_BK, out=marginal_TBK[t])
        marginal_TBK[t].sum(axis=1, out=total_TB[t])
        scale_B1 = 1.0 / total_TB[t][:, None]
        marginal_TBK[t] *= scale_B1
        q_TBK[t] *= scale_B1
        np.multiply(marginal_TBK[t], ALPHA, out=predicted_BK)
        predicted_BK += (1.0 - ALPHA) / K
    beta_BK = predicted_BK
    beta_BK.fill(1.0)
    for t in range(T - 1, 0, -1):
        beta_BK *= q_TBK[t]
        drawn_B1 = beta_BK.sum(axis=1, keepdims=True) * ((1.0 - ALPHA) / K)
        beta_BK *= ALPHA
        beta_BK += drawn_B1
        marginal_TBK[t - 1] *= beta_BK
    return np.log(total_TB).sum(axis=0) + highest_BT.sum(axis=1), marginal_TBK.transpose(1, 0, 2)


def hmmlearn_systems(log_emission_BTK: FloatArray) -> dict[str, Infer]:
    """hmmlearn's forward-backward with scaling and in logarithms, as in `BaseHMM._fit_scaling` and `_fit_log`."""
    from hmmlearn import _hmmc
    from hmmlearn.utils import log_normalize, normalize

    K = log_emission_BTK.shape[2]
    start_K, transition_KK = np.full(K, 1.0 / K), ALPHA * np.eye(K) + (1.0 - ALPHA) / K

    def scaling() -> Inferred:
        evidence, marginals = [], []
        for log_emission_TK in log_emission_BTK:
            emission_TK = np.exp(log_emission_TK)
            total, forward_TK, scale_T = _hmmc.forward_scaling(start_K, transition_KK, emission_TK)
            backward_TK = _hmmc.backward_scaling(start_K, transition_KK, emission_TK, scale_T)
            marginal_TK = forward_TK * backward_TK
            normalize(marginal_TK, axis=1)
            evidence.append(total)
            marginals.append(marginal_TK)
        return np.array(evidence), np.array(marginals)

    def logarithms() -> Inferred:
        evidence, marginals = [], []
        for log_emission_TK in log_emission_BTK:
            total, forward_TK = _hmmc.forward_log(start_K, transition_KK, log_emission_TK)
            log_marginal_TK = forward_TK + _hmmc.backward_log(start_K, transition_KK, log_emission_TK)
            log_normalize(log_marginal_TK, axis=1)
            evidence.append(total)
            marginals.append(np.exp(log_marginal_TK))
        return np.array(evidence), np.array(marginals)

    return {SCALING: scaling, LOGARITHMS: logarithms}


def torch_system(log_emission_BTK: FloatArray, device: str) -> Infer:
    leaf_BTK = torch.from_numpy(log_emission_BTK).to(device).requires_grad_()
    length_B = torch.full(leaf_BTK.shape[:1], leaf_BTK.shape[1], device=device)

    def infer() -> Inferred:
        evidence_B = sticky_log_evidence(leaf_BTK, length_B, ALPHA)
        (marginal_BTK,) = torch.autograd.grad(evidence_B.sum(), leaf_BTK)
        if device != "cpu":
            torch.cuda.synchronize()
            return np.empty(0), np.empty(0)  # the results stay on the device, as in training
        return evidence_B.detach().numpy(), marginal_BTK.numpy()

    return infer


def own_systems(log_emission_BTK: FloatArray) -> dict[str, Infer]:
    chain = as_chain(log_emission_BTK)
    memory_NK = np.empty((len(chain.row_N), chain.num_latents))

    def infer(chain: LatentChain, out: FloatArray | None = None) -> Inferred:
        result = posterior(chain, out=out)
        return result.log_evidence_M, result.marginal_NK.reshape(log_emission_BTK.shape)

    return {
        OURS: lambda: infer(chain),
        f"{OURS}, memory used again": lambda: infer(chain, memory_NK),
        f"{OURS}, chain included": lambda: infer(as_chain(log_emission_BTK)),
        "torch, cpu": torch_system(log_emission_BTK, "cpu"),
    }


def all_systems(log_emission_BTK: FloatArray, hmmlearn: bool) -> dict[str, Infer]:
    """Return the systems by name; each infers the same traces when called."""
    systems = own_systems(log_emission_BTK) | {"numpy": lambda: numpy_posterior(log_emission_BTK)}
    if torch.cuda.is_available():
        systems["torch, cuda"] = torch_system(log_emission_BTK, "cuda")
    return systems | (hmmlearn_systems(log_emission_BTK) if hmmlearn else {})


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(systems: dict[str, Infer], rounds: int) -> Iterator[Row]:
    """Yield CPU and wall milliseconds of each system in each round that counts; the first system changes."""
    names = list(systems)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            wall, cpu = time.perf_counter(), time.process_time()
            systems[name]()
            row = {
                "system": name,
                "round": number,
                "cpu_ms": 1e3 * (time.process_time() - cpu),
                "wall_ms": 1e3 * (time.perf_counter() - wall),
            }
            if number:
                yield row


def errors(result: Inferred, reference: Inferred) -> dict[str, float]:
    """Return the largest differences: of the evidence relative to its size, of marginals absolute."""
    evidence_B, marginal_BTK = result
    return {
        "evidence_relative": float((np.abs(evidence_B - reference[0]) / np.abs(reference[0])).max()),
        "marginals_absolute": float(np.abs(marginal_BTK - reference[1]).max()),
    }


def compare_systems(options: Options, progress: Progress) -> dict[str, Any]:
    """Measure every system at every number of latents: `{"passes", "errors"}`."""
    passes: list[Row] = []
    all_errors: dict[int, dict[str, dict[str, float]]] = {}
    bar = progress.add_task("", total=len(options.latents))
    for K in options.latents:
        progress.update(bar, description=f"{K} latents")
        log_emission_BTK = draw_emissions(options.traces, options.lines, K, options.seed)
        systems = all_systems(log_emission_BTK, options.hmmlearn)
        reference = systems[LOGARITHMS if options.hmmlearn else "numpy"]()
        all_errors[K] = {name: errors(infer(), reference) for name, infer in systems.items() if name != "torch, cuda"}
        measured = sorted(measure(systems, options.rounds), key=lambda row: list(systems).index(row["system"]))
        passes += [{"latents": K, **row} for row in measured]
        progress.advance(bar)
    return {"passes": passes, "errors": all_errors}


def sweep_lines(options: Options, progress: Progress) -> list[Row]:
    """Measure ours only, at several lengths of traces, with memory used again."""
    rows: list[Row] = []
    for T in progress.track(options.sweep, description="lengths"):
        log_emission_BTK = draw_emissions(options.traces, T, options.sweep_latents, options.seed)
        name = f"{OURS}, memory used again"
        passes = measure({name: own_systems(log_emission_BTK)[name]}, options.rounds)
        rows += [{"lines": T, "latents": options.sweep_latents, **row} for row in passes]
    return rows


# --- Report -----------------------------------------------------------------------------------------------------------

Spread = dict[str, float]


def spread(values: Iterable[float]) -> Spread:
    """Return median, minimum and maximum."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(passes: Sequence[Row], cells_per_latent: int) -> list[Row]:
    """Summarize the rounds; `times_ours` is a system's CPU time over ours in the same round."""
    groups: dict[tuple[int, str], dict[int, Row]] = defaultdict(dict)
    for row in passes:
        groups[row["latents"], row["system"]][row["round"]] = row
    return [
        {
            "latents": K,
            "system": system,
            "cpu_ms": spread(row["cpu_ms"] for row in rounds.values()),
            "wall_ms": spread(row["wall_ms"] for row in rounds.values()),
            "ns_per_cell": 1e6 * statistics.median(row["cpu_ms"] for row in rounds.values()) / (cells_per_latent * K),
            "times_ours": spread(row["cpu_ms"] / groups[K, OURS][n]["cpu_ms"] for n, row in rounds.items()),
        }
        for (K, system), rounds in groups.items()
    ]


def summarize_sweep(rows: Sequence[Row], traces: int) -> list[Row]:
    """Summarize CPU time by number of lines, and per cell (line and latent), which is constant if time is linear."""
    by_lines: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        by_lines[row["lines"], row["latents"]].append(row["cpu_ms"])
    return [
        {
            "lines": T,
            "latents": K,
            "cpu_ms": spread(times),
            "ns_per_cell": 1e6 * statistics.median(times) / (traces * T * K),
        }
        for (T, K), times in by_lines.items()
    ]


def show(result: dict[str, Any], options: Options, console: Console) -> None:
    """Print the tables."""
    title = f"{options.traces} traces of {options.lines} lines, K latents: median over the rounds (least–most); errors"
    table = Table(title=title)
    for column in ("K", "system", "CPU ms", "wall ms", "ns a cell", "times ours", "evidence", "marginals"):
        table.add_column(column, justify="left" if column == "system" else "right", no_wrap=True)
    for row in result["summary"]["systems"]:
        error = result["errors"][row["latents"]].get(row["system"])
        differences = [f"{value:.0e}" for value in error.values()] if error else ["", ""]
        figures = [_text(row["cpu_ms"]), f"{row['wall_ms']['median']:.2f}", f"{row['ns_per_cell']:.2f}"]
        table.add_row(str(row["latents"]), row["system"], *figures, _text(row["times_ours"], 1), *differences)
    console.print(table)
    lengths = Table(title=f"{OURS}, {options.traces} traces, {options.sweep_latents} latents, memory used again")
    for column in ("lines", "CPU ms", "ns a cell"):
        lengths.add_column(column, justify="right")
    for row in result["summary"]["lengths"]:
        lengths.add_row(str(row["lines"]), _text(row["cpu_ms"]), f"{row['ns_per_cell']:.2f}")
    console.print(lengths)


def _text(values: Spread, digits: int = 2) -> str:
    return "{median:.{d}f} ({min:.{d}f}–{max:.{d}f})".format(**values, d=digits)


def peer_versions(names: Sequence[str] = ("hmmlearn", "numba", "scipy")) -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def main(options: Options) -> None:
    """Measure, print the tables and write the JSON."""
    if options.quick:
        options = replace(options, rounds=1, traces=64, latents=(8, 32), sweep=(8, 16))
    if min(options.rounds, options.traces, options.lines, *options.sweep) < 1 or min(options.latents) < 2:
        sys.exit("error: rounds, traces and lines must be at least 1, latents at least 2")
    versions = peer_versions()
    if options.hmmlearn and versions["hmmlearn"] is None:
        sys.exit("error: hmmlearn is missing: pip install 'ra3gym[benchmarks]', or leave it out with --no-hmmlearn")
    torch.set_num_threads(1)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    kept = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    result = {**describe_start(), "peers": versions, "options": kept}
    with Progress(console=console, transient=True) as progress:
        result |= compare_systems(options, progress)
        result["lengths"] = sweep_lines(options, progress)
    result["summary"] = {
        "systems": summarize(result["passes"], options.traces * options.lines),
        "lengths": summarize_sweep(result["lengths"], options.traces),
    }
    show(result, options, console)
    output = options.output or RESULTS / "posterior.json"
    write_json(output, result)
    console.print(f"written to {output}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
