"""The `ra3gym` command. Each sub-command is a function whose arguments, typed and documented, are its options."""

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ra3gym import __version__
from ra3gym.errors import ConfigError, Ra3GymError, RunFolderError, UnknownNameError

T = TypeVar("T")
C = TypeVar("C")

PIPE_WIDTH = 110
"""Columns of the tables where no terminal says how many it has."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Run a study, every arm on every seed; --resume goes on after a kill."""
    from ra3gym.experiments.studies.config import STUDIES, STUDY_DESCRIPTIONS
    from ra3gym.experiments.studies.regimes import REGIMES, RegimesConfig, resume_regimes, start_regimes
    from ra3gym.experiments.studies.study import resume_study, start_study

    descriptions = STUDY_DESCRIPTIONS | {REGIMES: "where RA3 helps: shares of documented traces, token budgets"}
    name, *options = arguments or ["--help"]
    if name.startswith("-"):
        _print_choices("ra3gym run STUDY [options]", "studies", descriptions, console)
        console.print("\nThe options, with the values that quickstart has:\n", highlight=False)
        name, options = "quickstart", ["--help"]
    if name not in descriptions:
        raise UnknownNameError("study", name, descriptions)
    prog = f"ra3gym run {name}"
    if name == REGIMES:
        _start_or_resume(prog, descriptions[name], options, RegimesConfig(), start_regimes, resume_regimes, console)
    else:
        _start_or_resume(prog, descriptions[name], options, STUDIES[name], start_study, resume_study, console)


def study(arguments: Sequence[str], console: Console) -> None:
    """Measure one part of the method, its variants side by side; --resume goes on after a kill."""
    from ra3gym.experiments.studies.e_step import (
        E_STEP_STUDY,
        EStepStudyConfig,
        resume_e_step_study,
        start_e_step_study,
    )

    descriptions = {E_STEP_STUDY: "E-steps: the gap to the exact posterior, and pass@1 after the M-step"}
    name, *options = arguments or ["--help"]
    if name.startswith("-"):
        _print_choices("ra3gym study PART [options]", "parts", descriptions, console)
        return
    if name not in descriptions:
        raise UnknownNameError("part to study", name, descriptions)
    prog, config = f"ra3gym study {name}", EStepStudyConfig()
    _start_or_resume(prog, descriptions[name], options, config, start_e_step_study, resume_e_step_study, console)


def _start_or_resume(
    prog: str,
    description: str,
    options: Sequence[str],
    default: C,
    start: Callable[[str, C, Console], object],
    resume: Callable[[str, Path, Console], object],
    console: Console,
) -> None:
    """Parse a study's options over `default`, then start it, or go on with the folder that --resume names."""

    @dataclass(frozen=True)
    class Run:
        # The ignore: tyro reads the type at run time, and it is only known then.
        config: Annotated[type(default), tyro.conf.arg(name="")]  # type: ignore[valid-type]
        resume: Path | None = None
        """Go on with this run folder, under its own configuration. Give no other option then."""

    name = prog.split()[-1]
    chosen = _parsed(Run, options, prog=prog, description=description, default=Run(default))
    if chosen.resume is None:
        start(name, chosen.config, console)
    elif chosen.config == default:
        resume(name, chosen.resume, console)
    else:
        raise ConfigError("--resume goes on under the run's own configuration: leave the other options out")


def evaluate(arguments: Sequence[str], console: Console) -> None:
    """Evaluate a checkpoint: pass@k on a benchmark or on tasks of your own."""
    from ra3gym.experiments.commands.eval import ModelEvaluationConfig, evaluate_model
    from ra3gym.lm import quiet_libraries

    config = _parsed(ModelEvaluationConfig, arguments or ["--help"], prog="ra3gym eval")
    quiet_libraries()
    evaluate_model(config, console)


def rlvr(arguments: Sequence[str], console: Console) -> int:
    """Post-train a checkpoint on unit-test rewards; --resume goes on after a kill."""
    from ra3gym.experiments.commands.rlvr import PostTrainingConfig, resume_post_training, start_post_training
    from ra3gym.lm import keep_freed_memory, quiet_libraries

    @dataclass(frozen=True)
    class Resume:
        resume: Path
        """The run folder, as `ra3gym rlvr` printed it."""

    prog = "ra3gym rlvr"
    quiet_libraries()
    keep_freed_memory()
    if any(argument.partition("=")[0] == "--resume" for argument in arguments):
        if others := [
            name for name in arguments if name.startswith("-") and not name.startswith(("--resume", "-h", "--h"))
        ]:
            raise ConfigError(f"--resume goes on under the run's own configuration: leave {others[0]} out")
        description = "Go on with a run under its own configuration."
        chosen = _parsed(Resume, arguments, prog=prog, description=description)
        finished = resume_post_training(chosen.resume, console)
    else:
        finished = start_post_training(_parsed(PostTrainingConfig, arguments or ["--help"], prog=prog), console)
    return 0 if finished else INTERRUPTED


def judge(arguments: Sequence[str], console: Console) -> None:
    """Grade a file of completions: every verdict, and pass@k."""
    from ra3gym.experiments.commands.judge import JudgingConfig, judge_file

    judge_file(_parsed(JudgingConfig, arguments or ["--help"], prog="ra3gym judge"), console)


def envs(arguments: Sequence[str], console: Console) -> None:
    """List the environments with their spaces and defaults; with an id, explain one."""
    from ra3gym.experiments.commands.envs import describe_environment, list_environments

    @dataclass(frozen=True)
    class Envs:
        id: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="ID")] = None
        """The environment to explain, such as ra3gym/TokenCode-v0."""

    chosen = _parsed(Envs, arguments, prog="ra3gym envs", description=envs.__doc__)
    if chosen.id is None:
        list_environments(console)
    else:
        describe_environment(chosen.id, console)


def play(arguments: Sequence[str], console: Console) -> None:
    """Step through an episode of an environment here, by hand or by a policy."""
    from ra3gym.experiments.commands import play as playing

    @dataclass(frozen=True)
    class Play:
        id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]
        """The environment, such as ra3gym/TokenCode-v0; `ra3gym envs` lists them."""
        settings: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="[KEY=VALUE ...]")] = field(
            default_factory=list
        )
        """Keywords of the environment as key=value, such as top_k=8 observation=dict; `ra3gym envs ID` lists them."""
        policy: playing.PolicyName = "by-hand"
        """Who acts: by-hand asks you; random takes any legal action; likeliest and sample go by info["logprobs"]."""
        seed: int = 0
        """Of the environment, and of the policy."""
        option: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="KEY=VALUE")] = field(
            default_factory=list
        )
        """An option of reset as key=value, such as task_id=ID, trace_id=ID or state=3; may be given again."""
        steps: int | None = None
        """Stop after so many steps; None plays to the episode's end."""

    # tyro takes words that name no option in one place only; settings may stand anywhere.
    settings, arguments = playing.split_settings(arguments)
    chosen = _parsed(Play, arguments or ["--help"], prog="ra3gym play", description=play.__doc__)
    playing.play(
        chosen.id,
        console,
        policy=chosen.policy,
        seed=chosen.seed,
        steps=chosen.steps,
        options=dict(map(playing.parse_setting, chosen.option)),
        kwargs=dict(map(playing.parse_setting, [*chosen.settings, *settings])),
    )


def doctor(arguments: Sequence[str], console: Console) -> int:
    """Say how this machine isolates the programs that are judged, and why."""
    from ra3gym.verify.doctor import diagnose

    @dataclass(frozen=True)
    class Doctor:
        pass

    _parsed(Doctor, arguments, prog="ra3gym doctor", description=doctor.__doc__)
    found = diagnose()
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("check", "", "found, and the way out"):
        table.add_column(heading, overflow="fold")
    words = {True: Text("ok", "green"), False: Text("no", "bold red"), None: Text("not needed", "dim")}
    for check in found.checks:
        detail = Text(check.detail)
        if check.way_out:
            detail.append(f"\nway out: {check.way_out}", "yellow")
        table.add_row(check.name, words[check.ok], detail)
    console.print(table)
    for line in (_versions(), found.conclusion):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0 if found.ok else 1


def _versions() -> str:
    """What a report of a fault should name."""
    told = f"ra3gym {__version__}, Python {platform.python_version()}"
    try:
        import torch
    except (ImportError, OSError) as error:  # not installed, or its libraries do not load
        return f"{told}, torch does not load: {error}"
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none seen"
    return f"{told}, torch {torch.__version__} (CUDA devices: {cuda})"


def report(arguments: Sequence[str], console: Console) -> None:
    """Show a finished run's tables again, and redraw a study's report page."""
    from ra3gym.experiments.commands.eval import EVALUATION, show_summary
    from ra3gym.experiments.commands.rlvr import POST_TRAINING, show_post_training
    from ra3gym.experiments.studies.config import config_from_json
    from ra3gym.experiments.studies.e_step import E_STEP_STUDY, show_e_step_study
    from ra3gym.experiments.studies.grid import is_grid
    from ra3gym.experiments.studies.regimes import show_regimes
    from ra3gym.experiments.studies.study import finish
    from ra3gym.runs.folder import RunFolder

    @dataclass(frozen=True)
    class Report:
        run: tyro.conf.Positional[Path]
        """The run folder, as `ra3gym run` or `ra3gym eval` printed it."""
        threshold: float | None = None
        """Count RLVR's steps to this mean reward instead of the one the study was run with."""

    chosen = _parsed(Report, arguments or ["--help"], prog="ra3gym report", description=report.__doc__)
    folder = chosen.run
    opened = RunFolder.open(folder)
    if is_grid(opened):
        (show_e_step_study if opened.study == E_STEP_STUDY else show_regimes)(opened, console)
    elif opened.study == POST_TRAINING and opened.summary is not None:
        show_post_training(opened, console)
    elif opened.study == POST_TRAINING:
        raise RunFolderError(f"{folder} did not end: go on with it, ra3gym rlvr --resume {folder}")
    elif opened.study != EVALUATION:
        finish(opened, config_from_json(opened.config, folder / "config.json"), console, chosen.threshold)
    elif opened.summary is None:
        raise RunFolderError(f"{folder} is an evaluation that did not end: there is no summary.json. Start a new one")
    else:
        show_summary(opened.summary, console)


def inspect(arguments: Sequence[str], console: Console) -> None:
    """Show what a run inferred: its expert traces, coloured by their latents."""
    from ra3gym.experiments.commands.inspect import inspect_traces

    @dataclass(frozen=True)
    class Traces:
        run: tyro.conf.Positional[Path]
        """The run folder, as `ra3gym run` printed it, or a file of annotated traces (.jsonl, .parquet)."""
        output: Path | None = None
        """Where the page goes; beside the traces by default."""
        limit: int = 200
        """Traces on the page, at most. What it says of latents is over all traces."""
        latent: int | None = None
        """Only traces with this latent, a number."""
        task: str | None = None
        """Only traces of this task, by its id."""

    things = {"traces": "expert traces coloured by their latents, in the terminal and on a page"}
    name, *options = arguments or ["--help"]
    if name in ("-h", "--help"):
        _print_choices("ra3gym inspect traces RUN [options]", "what to inspect", things, console)
    elif name not in things:
        raise UnknownNameError("thing to inspect", name, things)
    else:
        chosen = _parsed(Traces, options or ["--help"], prog="ra3gym inspect traces", description=inspect.__doc__)
        inspect_traces(
            chosen.run, console, output=chosen.output, limit=chosen.limit, latent=chosen.latent, task=chosen.task
        )


def _parsed(kind: type[T], arguments: Sequence[str], **options: Any) -> T:
    """An instance of `kind` from the command line; `SystemExit` after help, or after tyro's words on a wrong flag.

    tyro shows any `ValueError` of a dataclass in a box of its own; ours are raised as they are.
    """

    def parsed() -> T:
        instance: T = tyro.cli(kind, args=arguments, registry=_with_commas(), **options)
        return instance

    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return parsed()
    except SystemExit as ended:
        for error in _chain(ended):
            if isinstance(error, Ra3GymError):
                raise error from None
    return parsed()  # the same once more, to be seen


def _chain(error: BaseException) -> Iterator[BaseException]:
    """What an exception was raised in answer to, from last to first."""
    cause = error.__context__
    if cause is not None:
        yield cause
        yield from _chain(cause)


def _with_commas() -> ConstructorRegistry:
    """Lists on the command line with commas, spaces or both: `--k 1,10`, `--arms ntp ra3`."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def several(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[object, ...]] | None:
        item, *rest = get_args(info.type) or (None,)
        if info.type_origin is not tuple or rest != [...] or item not in (int, str):
            return None
        metavar = "INT" if item is int else "NAME"
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=f"{metavar}[,{metavar} ...]",
            instance_from_str=lambda given: tuple(item(one) for text in given for one in text.split(",") if one),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(one, item) for one in value),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    return registry


def _print_choices(usage: str, heading: str, choices: Mapping[str, str], console: Console) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, description in choices.items():
        grid.add_row(f"  {name}", Text(description))
    console.print(f"usage: {usage}\n\n{heading}:", highlight=False, markup=False)
    console.print(grid)


COMMANDS: dict[str, Callable[[Sequence[str], Console], int | None]] = {
    "run": run,
    "study": study,
    "rlvr": rlvr,
    "eval": evaluate,
    "judge": judge,
    "report": report,
    "inspect": inspect,
    "envs": envs,
    "play": play,
    "doctor": doctor,
}
"""Each returns its exit status, `None` for 0."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; the exit status: 0, 1 after an error (told in one line), 130 after Ctrl-C."""
    name, *rest = (list(sys.argv[1:]) if arguments is None else list(arguments)) or ["--help"]
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    try:
        if name in ("-h", "--help"):
            descriptions = {command: str(function.__doc__) for command, function in COMMANDS.items()}
            _print_choices("ra3gym COMMAND [options]", "commands", descriptions, console)
            console.print("\nra3gym COMMAND --help explains every option; ra3gym --version.", highlight=False)
        elif name == "--version":
            console.print(f"ra3gym {__version__}", highlight=False)
        elif name in COMMANDS:
            return COMMANDS[name](rest, console) or 0
        else:
            raise UnknownNameError("command", name, COMMANDS)
    except Ra3GymError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `ra3gym run --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
