"""Run a study: every arm on every seed, in worker processes; a killed run can be resumed."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ra3gym.errors import WorkerDied
from ra3gym.experiments.report.comparison import StudyResults
from ra3gym.experiments.report.page import write_report
from ra3gym.experiments.report.results import has_result, load_results, save_result, with_steps
from ra3gym.experiments.report.summary import summarize
from ra3gym.experiments.report.tables import final_table, paired_table
from ra3gym.experiments.report.verdict import verdict
from ra3gym.experiments.studies.arms import ARMS
from ra3gym.experiments.studies.config import StudyConfig, config_from_json
from ra3gym.experiments.studies.latent_pages import write_latent_pages
from ra3gym.experiments.studies.progress import ProgressReporter, StudyProgress
from ra3gym.plugins import import_plugins
from ra3gym.runs.folder import RunFolder
from ra3gym.runs.metrics import MetricsLogger, merge_metrics

_STAGE_COST = {"pre-train": 0.2, "mid-train": 1.0, "rlvr": 1.5}


def start_study(name: str, config: StudyConfig, console: Console) -> RunFolder:
    """Run a study in a new run folder below `config.output`."""
    run = RunFolder.create(config.output, name, config)
    return _run(run, config, console)


def resume_study(name: str, folder: Path, console: Console) -> RunFolder:
    """Continue a run: finished units are kept; an unfinished one starts again and comes to the same numbers."""
    run = RunFolder.open(folder, name)
    config = config_from_json(run.config, run.path / "config.json")
    run.record_resume()
    return _run(run, config, console)


def _run(run: RunFolder, config: StudyConfig, console: Console) -> RunFolder:
    console.print(f"Run folder: {run.path}", highlight=False, soft_wrap=True)
    with run.exclusive():
        # Arms are code, and a plug-in may change them: what they were is part of the run, and is not to change in it.
        run.pin(arms={name: _training_of(name, config) for name in config.arms})
        try:
            _run_units(run, config, console)
        except (KeyboardInterrupt, BrokenProcessPool) as error:
            resume = f"Finished units are kept; continue with:\n  ra3gym run {run.kind} --resume {run.path}"
            if isinstance(error, BrokenProcessPool):
                raise WorkerDied(f"a worker process was killed (out of memory?). {resume}") from error
            console.print(f"Stopped. {resume}", highlight=False, soft_wrap=True)
            raise
        finish(run, config, console)
    return run


def _training_of(name: str, config: StudyConfig) -> dict[str, Any]:
    """Return all that decides how an arm is trained, beside the configuration."""
    arm = ARMS[name]
    return {
        "recipe": None if arm.recipe is None else asdict(arm.recipe),
        "e_step": arm.e_step,
        "until": arm.until,
        "rlvr_learning_rates": config.learning_rates_for(name) if name in config.rlvr_arms else (),
    }


def finish(run: RunFolder, config: StudyConfig, console: Console, threshold: float | None = None) -> Path:
    """Merge metrics, write `summary.json` and `report.html`, print the tables; return the report's path.

    A `threshold` replaces the configuration's: the steps to it are counted again on the stored curves.
    """
    if threshold is not None:
        config = replace(config, evaluation=replace(config.evaluation, threshold=threshold))
    units = load_results(run)
    for index, unit in enumerate(units):
        units[index] = with_steps(unit, config.evaluation.threshold, config.evaluation.threshold_window)
        if units[index] != unit:
            save_result(run, units[index])
    merge_metrics(run)
    results = StudyResults(units, [ARMS[name] for name in ARMS])
    answer = verdict(results)
    run.write_summary(summarize(results, config.arms, config.evaluation.threshold, answer))
    latents = write_latent_pages(run, results.seeds[0], [arm.name for arm in results.arms]) if units else None
    report = write_report(
        run,
        results,
        answer,
        legends=None if latents is None else latents.legends,
        trace_pages=() if latents is None else latents.pages,
    )
    console.print(final_table(results, console.width))
    if len(config.arms) > 1:
        console.print(paired_table(results, console.width))
    for line in answer.lines:
        console.print(line, highlight=False)
    console.print(f"\nReport: {report}", highlight=False, soft_wrap=True)
    return report


def _run_units(run: RunFolder, config: StudyConfig, console: Console) -> None:
    waiting = [seed for seed in config.seeds if _missing(run, config, seed)]
    units = [
        (seed, arm, stage) for seed in waiting for arm in _missing(run, config, seed) for stage in config.stages(arm)
    ]
    units += [(seed, "base model", "pre-train") for seed in waiting if not _base_folder(run, seed).is_dir()]
    context = multiprocessing.get_context("spawn")
    # Workers inherit this when they start: one thread each, for as many processes as there are cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    with StudyProgress(units, title=run.kind, weights=_STAGE_COST, console=console, context=context) as progress:
        pool = ProcessPoolExecutor(
            min(config.workers, max(1, len(waiting))),
            mp_context=context,
            initializer=_start_worker,
            initargs=(progress.reporter, config.plugins),
        )
        try:
            try:
                pending = {pool.submit(_run_seed, run, config, seed) for seed in waiting}
            except OSError as error:  # a worker died while the others were being started
                raise BrokenProcessPool(str(error)) from error
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException:
            # A worker would finish its seed first; its unfinished unit is run again on resumption.
            for process in (pool._processes or {}).values():
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _missing(run: RunFolder, config: StudyConfig, seed: int) -> list[str]:
    return [arm for arm in config.arms if not has_result(run, seed, arm)]


def _base_folder(run: RunFolder, seed: int) -> Path:
    return run.path / "checkpoints" / f"seed-{seed}" / "base"


_reporter: ProgressReporter


def _start_worker(reporter: ProgressReporter, plugins: Sequence[str]) -> None:
    """Set up a worker process: display, plug-ins, one thread, quiet libraries, an allocator that keeps memory."""
    global _reporter
    _reporter = reporter
    import signal

    import torch

    from ra3gym.lm import keep_freed_memory, quiet_libraries

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_plugins(plugins)
    torch.set_num_threads(1)
    quiet_libraries()
    keep_freed_memory()


def _run_seed(run: RunFolder, config: StudyConfig, seed: int) -> None:
    """Run all missing arms of one seed; each result is stored at once."""
    from ra3gym.experiments.studies.reporter import UnitReporter
    from ra3gym.experiments.studies.seed import prepare_seed
    from ra3gym.experiments.studies.unit import run_unit

    folder = _base_folder(run, seed).parent
    with MetricsLogger(run) as metrics:
        shared = prepare_seed(config, seed, folder, UnitReporter(seed, "base model", _reporter, metrics))
        for arm in _missing(run, config, seed):
            save_result(run, run_unit(shared, arm, folder, UnitReporter(seed, arm, _reporter, metrics)))
