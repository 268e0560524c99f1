"""RLVR of any checkpoint on any set of tasks: what `ra3gym rlvr` does.

root/rlvr-YYYYmmdd-HHMMSS/
    config.json, manifest.json   configuration; algorithm, tasks, versions, machine
    metrics.jsonl, tensorboard/  one record per step
    checkpoints/, model/         Hugging Face folders, with the state that resuming needs
    summary.json                 means of the first and of the last steps, written last
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from ra3gym.abstractions.pruning import PrunedActions
from ra3gym.agents.rlvr import Algorithm, RLVRConfig, RLVRStep, algorithm, train
from ra3gym.agents.rlvr.checkpoint import RUN_KIND, check_extension, step_of
from ra3gym.agents.rlvr.fit import check_fit
from ra3gym.agents.rlvr.rollouts.sampler import Sampler
from ra3gym.errors import ConfigError
from ra3gym.experiments.commands.settings import parse_setting
from ra3gym.experiments.commands.task_sets import judge_limits, task_budgets, tasks_by_id, without_limits
from ra3gym.experiments.commands.token_pruning import prune_to_expert, report_line, token_mask
from ra3gym.experiments.commands.trackers import known_trackers
from ra3gym.experiments.studies.config import typed_config
from ra3gym.experiments.studies.progress import StudyProgress
from ra3gym.files import check_writable, write_json
from ra3gym.lm import LoadedModel, load
from ra3gym.plugins import import_plugins
from ra3gym.runs.folder import RunFolder
from ra3gym.tasks import CodeTask, load_tasks
from ra3gym.tasks.public.benchmarks import BENCHMARKS
from ra3gym.verify import Judge

_SHOWN_STEPS = 5


@dataclass(frozen=True)
class PostTrainingConfig:
    """Post-train a checkpoint on unit-test rewards.

    Attributes:
        model: "embedded", a folder written by save_pretrained, a hub id, or a .gguf file.
        tasks: one or several sets, separated by commas: idioms, humaneval, mbpp, acecode, doctest:PACKAGE, jsonl:FILE
            and the others that `ra3gym eval` knows.
        algorithm: grpo, dr_grpo, dapo, rloo, reinforce++, gspo, cispo, ppo, or one that a plug-in registers.
        set: changes of the algorithm, as in --set clip_high=0.28 kl_coefficient=0.01; a wrong name lists them all.
        split: of every set; by default the training split where a set has one, else the whole set.
        path: where the data lies, as for `ra3gym eval`.
        limit: only the first so many tasks of each set.
        prune_to_expert: sample only the most frequent tokens of the tasks' reference programs, as many as make up this
            share of them, such as 0.999 (a pruned action space); the cost is printed and kept in pruned_actions.json.
        seed: of everything random.
        workers: processes that run the tests while programs are sampled.
        judge_seconds: CPU seconds that one program may use; the default is that of `ra3gym eval`.
        judge_memory_mb: address space that one program may use, in MB; the default is that of `ra3gym eval`.
        device: where the model runs; "auto" takes a GPU if there is one. `accelerate launch` decides for itself.
        generate: "model" samples in this process, "vllm" on a server that gets the weights after each step.
        vllm_url: the server's address, such as http://localhost:8000 (docs/vllm.md).
        vllm_weights: a folder that the server can read, through which it gets the weights; by default the folder for
            temporary files, which suits a server on the same machine.
        trackers: where metrics go in addition to metrics.jsonl: tensorboard, wandb, and others that accelerate knows;
            by default tensorboard where it is installed.
        plugins: modules to import first, which may register algorithms.
        output: the folder that run folders are made in.
        training: settings that are the same for every algorithm.
    """

    model: str
    tasks: tuple[str, ...]
    algorithm: str = "grpo"
    set: tuple[str, ...] = ()
    split: str | None = None
    path: Path | None = None
    limit: int | None = None
    prune_to_expert: float | None = None
    seed: int = 0
    workers: int = 2
    judge_seconds: float | None = None
    judge_memory_mb: int | None = None
    device: str = "auto"
    generate: Literal["model", "vllm"] = "model"
    vllm_url: str | None = None
    vllm_weights: Path | None = None
    trackers: tuple[str, ...] | None = None
    plugins: tuple[str, ...] = ()
    output: Path = Path("runs")
    training: Annotated[RLVRConfig, tyro.conf.arg(name="")] = field(default_factory=RLVRConfig)

    def __post_init__(self) -> None:
        import_plugins(self.plugins)
        if not self.tasks:
            raise ConfigError("tasks: name at least one set")
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers}: give at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: give 0 or a positive number")
        if (self.generate == "vllm") != (self.vllm_url is not None):
            raise ConfigError(
                f"generate={self.generate!r} with vllm_url={self.vllm_url!r}: --generate vllm and --vllm-url URL "
                "belong together"
            )
        # Wrong names and limits out of range raise here.
        _algorithm(self)
        judge_limits(self.judge_seconds, self.judge_memory_mb)


def start_post_training(config: PostTrainingConfig, console: Console) -> bool:
    """Run RLVR in a new run folder; return whether it finished (Ctrl-C stops it, and its state is stored)."""
    return _run(config, None, console)


def resume_post_training(folder: Path, console: Console, **changes: Any) -> bool:
    """Continue a run after a kill or Ctrl-C, or with more steps after its end; return whether it finished.

    Args:
        folder: the run.
        console: for messages.
        changes: settings that differ from its own, of those that do not change what it has done: steps,
            checkpoint_every, workers, device.

    Raises:
        ConfigError: a number of steps that the run cannot be continued to.
    """
    run = RunFolder.open(folder, RUN_KIND)
    before = typed_config(PostTrainingConfig, run.config, folder / "config.json")
    of_training = {name: value for name, value in changes.items() if hasattr(before.training, name)}
    own = {name: value for name, value in changes.items() if name not in of_training}
    config = dataclasses.replace(before, training=dataclasses.replace(before.training, **of_training), **own)
    check_extension(run, dataclasses.asdict(before.training), config.training.steps)
    changed = {f"training.{name}": value for name, value in of_training.items()} | own
    return _run(config, folder, console, changed)


def _run(
    config: PostTrainingConfig, folder: Path | None, console: Console, changed: Mapping[str, Any] | None = None
) -> bool:
    from accelerate import PartialState

    # Without `cpu`, processes on a machine without accelerators would not find each other.
    process = PartialState(cpu=config.device == "cpu" or not torch.accelerator.is_available())
    finished = _run_among(process, config, folder, console, changed or {})
    # An open group can abort the exit. After an error it stays open: other processes may still wait in it.
    process.destroy_process_group()
    return finished


def _run_among(
    process: Any, config: PostTrainingConfig, folder: Path | None, console: Console, changed: Mapping[str, Any]
) -> bool:
    from accelerate.utils import broadcast_object_list

    if not process.is_main_process:
        console = Console(file=StringIO())  # one process speaks for all
    resumed = folder is not None
    # (`changed` is not stored yet.)
    if folder is not None and _has_finished(ended := RunFolder.open(folder), config):
        console.print(f"{folder} has finished: there is nothing left to do", highlight=False, soft_wrap=True)
        show_post_training(ended, console)
        return True
    # Mistakes are found before the folder is made.
    check_writable(config.output if folder is None else folder)
    trackers = known_trackers(config.trackers)
    tasks = training_tasks(config, console)
    loaded = load(config.model, device=str(process.device) if config.device == "auto" else config.device)
    check_fit(_algorithm(config), config.training, loaded, process.num_processes)
    tasks = _with_room(tasks, loaded, config.training.max_new_tokens, console)
    pruned = None
    if config.prune_to_expert is not None:
        pruned = prune_to_expert(tasks, loaded, config.prune_to_expert)
        console.print(report_line(pruned), highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        sampler = _sampler(config, console)
        if sampler is not None:
            stack.callback(sampler.close)
        if process.is_main_process:
            run = RunFolder.create(config.output, RUN_KIND, config) if folder is None else RunFolder.open(folder)
            stack.enter_context(run.exclusive())
            if resumed:
                run.change(changed)
                run.record_resume()
            if pruned is not None:
                write_json(run.path / "pruned_actions.json", dataclasses.asdict(pruned))
            folder = run.path
        (folder,) = broadcast_object_list([folder])
        if not process.is_main_process:
            run = RunFolder.open(folder)
        console.print(f"Run folder: {folder}", highlight=False, soft_wrap=True)
        console.print(
            f"training processes: {process.num_processes}, on {process.device.type}; judge: {config.workers} of each",
            highlight=False,
        )
        finished = _train(config, run, resumed, tasks, loaded, pruned, sampler, trackers, console)
        if not finished:
            console.print(
                f"\nStopped, and stored. Continue with: ra3gym rlvr --resume {folder}", highlight=False, soft_wrap=True
            )
        elif process.is_main_process:
            run.write_summary(summary_of(config, run))
            show_post_training(run, console)
    return finished


def _has_finished(run: RunFolder, config: PostTrainingConfig) -> bool:
    """Return whether the run has ended, and not to be continued with more steps."""
    return run.summary is not None and run.summary["steps"] >= config.training.steps


def _train(
    config: PostTrainingConfig,
    run: RunFolder,
    resumed: bool,
    tasks: Sequence[CodeTask],
    loaded: LoadedModel,
    pruned: PrunedActions | None,
    sampler: Sampler | None,
    trackers: Sequence[str],
    console: Console,
) -> bool:
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    accelerator = Accelerator(
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(str(run.path), logging_dir=str(run.path / "tensorboard")),
    )
    # Steps after the last checkpoint are done again: TensorBoard has to forget them.
    done = step_of(run.checkpoints[-1]) if run.checkpoints else 0
    redo = {"tensorboard": {"purge_step": done + 1}} if resumed else {}
    accelerator.init_trackers(RUN_KIND, config=_flat(config), init_kwargs=redo)
    unit = (config.seed, config.algorithm, RUN_KIND)
    with ExitStack() as stack:
        for tracker in accelerator.trackers:
            stack.callback(tracker.finish)
        limits = judge_limits(config.judge_seconds, config.judge_memory_mb)
        judge = stack.enter_context(Judge(workers=config.workers, limits=limits))
        progress = stack.enter_context(StudyProgress([unit], title=RUN_KIND, console=console))
        started, tokens = time.perf_counter(), 0

        def on_step(step: RLVRStep) -> None:
            nonlocal tokens
            tokens += step.tokens
            values = {name: value for name, value in dataclasses.asdict(step).items() if value is not None}
            accelerator.log({name: value for name, value in values.items() if name != "step"}, step=step.step)
            progress.reporter.update(
                *unit,
                step.step,
                config.training.steps,
                reward=step.reward,
                pass_rate=step.pass_rate,
                entropy=step.entropy,
                tokens_per_second=tokens / (time.perf_counter() - started),
            )

        result = train(
            loaded,
            tasks,
            algorithm=_algorithm(config),
            config=config.training,
            reward=judge,
            sampler=sampler,
            allowed_mask_V=None if pruned is None else token_mask(pruned),
            seed=config.seed,
            folder=run,
            resume=resumed,
            on_step=on_step,
            accelerator=accelerator,
        )
    accelerator.free_memory()  # what it prepared would keep the process group alive
    return result.finished


def training_tasks(config: PostTrainingConfig, console: Console) -> list[CodeTask]:
    """Return the tasks of all sets that a run trains on; `DataError` for an id that occurs twice."""
    tasks: list[CodeTask] = []
    for name in config.tasks:
        split = config.split or _training_split(name)
        loaded = load_tasks(name, split=split, path=config.path, limit=config.limit)
        part = f"its {split} split" if split else "all of it: do not evaluate on it"
        console.print(f"tasks: {name}, {len(loaded):,} ({part})", highlight=False, soft_wrap=True)
        tasks += loaded
    tasks = without_limits(tasks, config.judge_seconds, config.judge_memory_mb)
    return list(tasks_by_id(tasks, ", ".join(config.tasks)).values())


def _training_split(name: str) -> str | None:
    if name == "idioms":
        return "rl"
    return "train" if name in BENCHMARKS and "train" in BENCHMARKS[name].splits else None


def _with_room(tasks: Sequence[CodeTask], loaded: LoadedModel, max_new_tokens: int, console: Console) -> list[CodeTask]:
    """Return the tasks whose prompts leave room for a whole completion in the model's context."""
    room = task_budgets(loaded, tasks, max_new_tokens)
    kept = [task for task in tasks if room[task.task_id] == max_new_tokens]
    if len(kept) < len(tasks):
        console.print(
            f"{len(tasks) - len(kept)} task(s) left out: their prompts leave less than max_new_tokens={max_new_tokens} "
            "in the model's context",
            highlight=False,
            soft_wrap=True,
        )
    if not kept:
        raise ConfigError(f"max_new_tokens={max_new_tokens} leaves no room for any prompt in the model's context")
    return kept


def _algorithm(config: PostTrainingConfig) -> Algorithm:
    return algorithm(config.algorithm, **dict(map(parse_setting, config.set)))


def _sampler(config: PostTrainingConfig, console: Console) -> Sampler | None:
    if config.vllm_url is None:
        return None
    from ra3gym.agents.rlvr.vllm.sampler import VLLMSampler

    console.print(f"waiting for the vLLM server at {config.vllm_url}", highlight=False, soft_wrap=True)
    return VLLMSampler(config.vllm_url, weights_folder=config.vllm_weights)


def _flat(config: PostTrainingConfig) -> dict[str, Any]:
    """Return the configuration as numbers and texts, which is what trackers take."""
    values = dataclasses.asdict(config)
    values |= values.pop("training")
    return {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in values.items()}


def summary_of(config: PostTrainingConfig, run: RunFolder) -> dict[str, Any]:
    """Return the summary of a finished run: its size, and means over its first and its last steps."""
    steps = [RLVRStep(**record) for record in run.metrics.records()]
    shown = ("reward", "pass_rate", "informative", "entropy", "length", "truncated", "decisions")
    parts = {"first": steps[:_SHOWN_STEPS], "last": steps[-_SHOWN_STEPS:]}
    seconds = sum(step.sample_seconds + step.train_seconds for step in steps)
    tokens = sum(step.tokens for step in steps)
    return {
        "model": config.model,
        "tasks": list(config.tasks),
        "algorithm": config.algorithm,
        "steps": len(steps),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        **{
            part: {name: statistics.fmean(getattr(step, name) for step in chosen) for name in shown} if chosen else {}
            for part, chosen in parts.items()
        },
    }


def show_post_training(run: RunFolder, console: Console) -> None:
    """Print a finished run's summary, and the commands that use its model."""
    summary = run.summary
    assert summary is not None
    speed = f"{summary['tokens']:,} tokens in {summary['seconds']:.0f} s ({summary['tokens_per_second']:,.0f} a second)"
    console.print(
        f"\n{summary['algorithm']} on {', '.join(summary['tasks'])}, from {summary['model']}: "
        f"{_counted(summary['steps'], 'step')}, {speed}",
        highlight=False,
        soft_wrap=True,
    )
    if summary["first"]:
        # A run so short that its first and last steps overlap has one mean.
        parts = ("first", "last") if summary["steps"] > _SHOWN_STEPS else ("first",)
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column(f"mean of {_counted(min(summary['steps'], _SHOWN_STEPS), 'step')}")
        for part in parts:
            table.add_column(part if len(parts) > 1 else "", justify="right")
        for name in summary["first"]:
            table.add_row(name.replace("_", " "), *(_number(summary[part][name]) for part in parts))
        console.print(table)
    console.print(
        f"model: {run.path / 'model'}\nevaluate it: ra3gym eval --model {run.path / 'model'} --tasks TASKS\n"
        f"curves: tensorboard --logdir {run.path / 'tensorboard'}",
        highlight=False,
        soft_wrap=True,
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
