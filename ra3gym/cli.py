"""The `ra3gym` command: parses arguments and hands them to `ra3gym.experiments.commands`.

A command's module is imported only when that command runs, so that `ra3gym --help` is fast.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ra3gym import __version__
from ra3gym.errors import ConfigError, Ra3GymError, UnknownNameError
from ra3gym.experiments.commands.arguments import parse
from ra3gym.files import NOT_WRITABLE
from ra3gym.plugins import import_plugins

if TYPE_CHECKING:
    from ra3gym.experiments.commands.run import NamedStudy

PIPE_WIDTH = 110
"""Width of the output in columns when it does not go to a terminal."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""


def run(arguments: Sequence[str], console: Console) -> None:
    """Run a study, every arm on every seed; --resume continues after a kill."""
    from ra3gym.experiments.commands.run import RUN_STUDIES
    from ra3gym.experiments.studies.arms import ARMS

    if not arguments or arguments[0].startswith("-"):
        _print_choices("ra3gym run STUDY [options]", "studies", _descriptions(RUN_STUDIES), console)
        arms = {name: f"{ARMS[name].description} ({ARMS[name].role})" for name in ARMS}
        _print_list("\narms, for --arms and --rlvr-arms:", arms, console)
        console.print("\nThe options, with the defaults of quickstart:\n", highlight=False)
        arguments = ["quickstart", "--help"]
    _start_or_resume("ra3gym run", RUN_STUDIES, arguments, console)


def study(arguments: Sequence[str], console: Console) -> None:
    """Measure one part of the method, its variants side by side; --resume continues after a kill."""
    from ra3gym.experiments.commands.run import PART_STUDIES

    if not arguments or arguments[0].startswith("-"):
        _print_choices("ra3gym study PART [options]", "parts", _descriptions(PART_STUDIES), console)
    else:
        _start_or_resume("ra3gym study", PART_STUDIES, arguments, console)


def _descriptions(studies: "Mapping[str, NamedStudy]") -> dict[str, str]:
    return {name: study.description for name, study in studies.items()}


def _start_or_resume(
    command: str, studies: "Mapping[str, NamedStudy]", arguments: Sequence[str], console: Console
) -> None:
    """Parse a study's name and options, then start it, or continue the run folder that --resume names."""
    name, *options = arguments
    if name not in studies:
        raise UnknownNameError("study", name, studies)
    study = studies[name]

    @dataclass(frozen=True)
    class Run:
        # The ignore: the type depends on the study, and tyro reads it at run time.
        config: Annotated[type(study.default), tyro.conf.arg(name="")]  # type: ignore[valid-type]
        resume: Path | None = None
        """Continue this run folder under its own configuration. Give no other option then."""

    prog = f"{command} {name}"
    chosen = parse(Run, options, prog=prog, description=study.description, default=Run(study.default))
    if chosen.resume is None:
        study.start(name, chosen.config, console)
    elif chosen.config == study.default:
        study.resume(name, chosen.resume, console)
    else:
        raise ConfigError("--resume continues under the run's own configuration: leave the other options out")


def evaluate(arguments: Sequence[str], console: Console) -> None:
    """Evaluate a checkpoint: pass@k on a benchmark or on tasks of your own."""
    from ra3gym.experiments.commands.eval import ModelEvaluationConfig, evaluate_model
    from ra3gym.lm import quiet_libraries

    config = parse(ModelEvaluationConfig, arguments or ["--help"], prog="ra3gym eval")
    quiet_libraries()
    evaluate_model(config, console)


def rlvr(arguments: Sequence[str], console: Console) -> int:
    """Post-train a checkpoint on unit-test rewards; --resume continues after a kill."""
    from ra3gym.experiments.commands.rlvr import PostTrainingConfig, resume_post_training, start_post_training
    from ra3gym.lm import keep_freed_memory, quiet_libraries

    @dataclass(frozen=True)
    class Resume:
        resume: Path
        """The run folder, as `ra3gym rlvr` printed it."""
        steps: int | None = None
        """Continue a stopped or finished run to this step. The learning rate must be constant."""
        checkpoint_every: int | None = None
        """Steps between checkpoints."""
        workers: int | None = None
        """Processes that run the tests."""
        device: str | None = None
        """Where the model runs."""

    prog = "ra3gym rlvr"
    quiet_libraries()
    keep_freed_memory()
    if any(argument.partition("=")[0] == "--resume" for argument in arguments):
        may_change = ("--steps", "--checkpoint-every", "--workers", "--device")
        allowed = ("--resume", "-h", "--h", *may_change)
        options = [name.replace("_", "-") for name in arguments if name.startswith("-")]
        if others := [name for name in options if not name.startswith(allowed)]:
            raise ConfigError(
                f"--resume continues under the run's own configuration: leave {others[0]} out. It may change what does "
                f"not change the past: {', '.join(may_change)}"
            )
        description = "Continue a run under its own configuration; some settings may change."
        chosen = parse(Resume, arguments, prog=prog, description=description)
        changes = {name: value for name, value in vars(chosen).items() if name != "resume" and value is not None}
        finished = resume_post_training(chosen.resume, console, **changes)
    else:
        finished = start_post_training(parse(PostTrainingConfig, arguments or ["--help"], prog=prog), console)
    return 0 if finished else INTERRUPTED


def judge(arguments: Sequence[str], console: Console) -> None:
    """Grade a file of completions: every verdict, and pass@k."""
    from ra3gym.experiments.commands.judge import JudgingConfig, judge_file

    judge_file(parse(JudgingConfig, arguments or ["--help"], prog="ra3gym judge"), console)


def report(arguments: Sequence[str], console: Console) -> None:
    """Show a finished run's tables again, and redraw a study's report page."""
    from ra3gym.experiments.commands.report import ReportConfig, show_run

    show_run(parse(ReportConfig, arguments or ["--help"], prog="ra3gym report"), console)


def inspect(arguments: Sequence[str], console: Console) -> None:
    """Show what a run inferred: its expert traces, colored by their latents."""
    from ra3gym.experiments.commands.inspect import InspectionConfig, inspect_traces

    things = {"traces": "expert traces colored by their latents, in the terminal and on a page"}
    name, *options = arguments or ["--help"]
    if name in ("-h", "--help"):
        _print_choices("ra3gym inspect traces RUN [options]", "what to inspect", things, console)
    elif name not in things:
        raise UnknownNameError("thing to inspect", name, things)
    else:
        inspect_traces(parse(InspectionConfig, options or ["--help"], prog="ra3gym inspect traces"), console)


def envs(arguments: Sequence[str], console: Console) -> None:
    """List the environments with their spaces and defaults; with an id, explain one."""
    from ra3gym.experiments.commands.envs import describe_environment, list_environments

    @dataclass(frozen=True)
    class Envs:
        id: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="ID")] = None
        """The environment to explain, such as ra3gym/TokenCode-v0."""
        plugins: tuple[str, ...] = ()
        """Modules to import first, which may register environments."""

    chosen = parse(Envs, arguments, prog="ra3gym envs", description=envs.__doc__)
    import_plugins(chosen.plugins)
    if chosen.id is None:
        list_environments(console)
    else:
        describe_environment(chosen.id, console)


def play(arguments: Sequence[str], console: Console) -> None:
    """Step through an episode of an environment here, by hand or by a policy."""
    from ra3gym.experiments.commands import play as playing
    from ra3gym.experiments.commands.settings import parse_setting, split_settings

    @dataclass(frozen=True)
    class Play:
        id: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]
        """The environment, such as ra3gym/TokenCode-v0; `ra3gym envs` lists them."""
        settings: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="[KEY=VALUE ...]")] = field(
            default_factory=list
        )
        """Keywords of the environment as key=value, such as top_k=8 observation=dict; `ra3gym envs ID` lists them."""
        policy: playing.PolicyName = "by-hand"
        """Who acts: by-hand asks you; random takes any legal action; likeliest and sample use info["logprobs"]."""
        seed: int = 0
        """Of the environment, and of the policy."""
        option: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="KEY=VALUE")] = field(
            default_factory=list
        )
        """An option of reset as key=value, such as task_id=ID, trace_id=ID or state=3; may be repeated."""
        steps: int | None = None
        """Stop after this many steps; None plays to the episode's end."""
        plugins: tuple[str, ...] = ()
        """Modules to import first, which may register environments and task sets."""

    # tyro expects positional words in one place only; settings may come anywhere.
    settings, arguments = split_settings(arguments)
    chosen = parse(Play, arguments or ["--help"], prog="ra3gym play", description=play.__doc__)
    import_plugins(chosen.plugins)
    playing.play(
        chosen.id,
        console,
        policy=chosen.policy,
        seed=chosen.seed,
        steps=chosen.steps,
        options=dict(map(parse_setting, chosen.option)),
        kwargs=dict(map(parse_setting, [*chosen.settings, *settings])),
    )


def doctor(arguments: Sequence[str], console: Console) -> int:
    """Say how this machine isolates the programs that are judged, and why."""
    from ra3gym.experiments.commands.doctor import print_diagnosis

    @dataclass(frozen=True)
    class Doctor:
        pass

    parse(Doctor, arguments, prog="ra3gym doctor", description=doctor.__doc__)
    return 0 if print_diagnosis(console) else 1


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
"""Each returns its exit status; `None` means 0."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 1 after an error (printed in one line), 130 after Ctrl-C."""
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
    except BrokenPipeError:  # the reader has closed the pipe, as in `ra3gym run --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        Console(stderr=True).print(f"error: {error}; make room there, or choose another place", soft_wrap=True)
        return 1
    return 0


def _print_choices(usage: str, heading: str, choices: Mapping[str, str], console: Console) -> None:
    _print_list(f"usage: {usage}\n\n{heading}:", choices, console)


def _print_list(heading: str, choices: Mapping[str, str], console: Console) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, description in choices.items():
        grid.add_row(f"  {name}", Text(description))
    console.print(heading, highlight=False, markup=False)
    console.print(grid)
