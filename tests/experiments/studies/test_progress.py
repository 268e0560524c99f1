"""Progress, with real queues and processes, on a plain stream and on a terminal."""

from __future__ import annotations

import io
import multiprocessing
from multiprocessing.context import ForkContext, ForkServerContext

import pytest
from rich.console import Console

from ra3gym.experiments.studies.progress import StudyProgress, Unit

UNITS: list[Unit] = [(10, "ntp", "midtrain"), (10, "ntp", "rlvr")]


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_without_a_terminal_start_and_end_of_each_unit_are_printed() -> None:
    console = plain()
    with StudyProgress(UNITS, title="quickstart", console=console, interval=1e9) as progress:
        for step in (1, 2, 3, 4):
            progress.reporter.update(10, "ntp", "midtrain", step, 4, loss=2.0 / step, tokens_per_second=51_234.5)
        progress.reporter.update(10, "ntp", "rlvr", 1, 2, reward=0.25)
        progress.reporter.note("a line of its own")
    assert printed(console) == [
        "seed 10 ntp midtrain · 1/4 · loss 2  51,234 tok/s · quickstart 12%",
        "seed 10 ntp midtrain · 4/4 · loss 0.5  51,234 tok/s · quickstart 50%",
        "seed 10 ntp rlvr · 1/2 · reward 0.25 · quickstart 75%",
        "a line of its own",
    ]


def test_every_event_is_printed_when_the_interval_is_zero() -> None:
    console = plain()
    with StudyProgress(UNITS, console=console, interval=0.0) as progress:
        for step in range(1, 6):
            progress.reporter.update(10, "ntp", "rlvr", step, 5)
    assert len(printed(console)) == 5


def test_the_study_is_weighted_by_stage_and_ignores_units_that_do_not_count() -> None:
    progress = StudyProgress(UNITS, weights={"rlvr": 3.0}, console=plain())
    with progress:
        progress.reporter.update(10, "ntp", "midtrain", 4, 4)
        progress.reporter.update(10, "ntp", "tuning", 1, 4)
    assert progress.share == pytest.approx(0.25)


def test_a_study_without_units_is_done() -> None:
    assert StudyProgress([], console=plain()).share == 1.0


@pytest.mark.parametrize("context", [multiprocessing.get_context("fork"), multiprocessing.get_context("forkserver")])
def test_workers_of_either_start_method_report_through_the_queue(context: ForkContext | ForkServerContext) -> None:
    units: list[Unit] = [(seed, "ra3", "rlvr") for seed in (10, 11)]
    progress = StudyProgress(units, console=plain(), interval=1e9)
    # A worker's target must be importable where it runs, which test modules are not: so a method of the package.
    workers = [context.Process(target=progress.reporter.update, args=(*unit, 50, 50)) for unit in units]
    with progress:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert progress.share == 1.0


def test_a_terminal_shows_a_row_per_running_unit_and_the_study() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with StudyProgress(UNITS, title="quickstart", console=console) as progress:
        progress.reporter.update(10, "ntp", "midtrain", 4, 4, loss=1.5)
        progress.reporter.update(10, "ntp", "rlvr", 1, 4, reward=0.25)
    last_frame = "\n".join(printed(console)[-3:])
    assert "seed 10 ntp rlvr" in last_frame
    assert "reward 0.25" in last_frame
    assert "62%" in last_frame
    assert "midtrain" not in last_frame


def test_an_error_inside_ends_the_display_and_passes_through() -> None:
    with pytest.raises(KeyError), StudyProgress(UNITS, console=plain()):
        raise KeyError("boom")


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError("no space left")


def test_a_display_that_breaks_halts_no_worker_and_is_reported_at_the_end() -> None:
    console = Console(file=FullDisk(), force_terminal=False)
    progress = StudyProgress(UNITS, console=console, interval=0.0)

    def work() -> None:
        with progress:
            # Far more than a pipe's buffer holds: without a reader the last events would wait for ever.
            for step in range(2_000):
                progress.reporter.update(10, "ntp", "rlvr", step, 2_000, reward=0.5)

    with pytest.raises(OSError, match="no space left"):
        work()


def test_missing_values_are_left_out() -> None:
    console = plain()
    with StudyProgress([], title="t", console=console) as progress:
        progress.reporter.update(10, "ntp", "rlvr", 1, 2, reward=None, loss=0.5)
        progress.reporter.note("[bold]brackets stay[/bold]")
    assert printed(console) == ["seed 10 ntp rlvr · 1/2 · loss 0.5 · t 100%", "[bold]brackets stay[/bold]"]
