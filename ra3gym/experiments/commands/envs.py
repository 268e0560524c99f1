"""The command `ra3gym envs`: the package's environments, their spaces and their keywords."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, fields
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from ra3gym.envs.keywords import field_meanings, section_entries
from ra3gym.errors import UnknownNameError

NAMESPACE = "ra3gym"

DEFAULT_SPACES = {
    "ra3gym/LatentCode-v0": ("Discrete(48)", "Box(-10000.0, 10000.0, (64,), float32)"),
    "ra3gym/OptionMDP-v0": ("Discrete(12)", "Box(0.0, 1.0, (24,), float32)"),
    "ra3gym/RationaleCode-v0": ("Discrete(5)", "Box(-10000.0, 10000.0, (64,), float32)"),
    "ra3gym/TokenCode-v0": ("Discrete(32)", "Box(-10000.0, 10000.0, (64,), float32)"),
    "ra3gym/TraceInference-v0": ("Discrete(48)", "Box(-10000.0, 10000.0, (178,), float32)"),
}
"""Action and observation space of each id without keywords. Making them would load a model; a test does that."""


@dataclass(frozen=True)
class Keyword:
    """One keyword of an environment.

    Attributes:
        name: with two stars for further keywords.
        default: as Python, "" if there is none.
        meaning: what the environment's documentation says of it, in one line.
    """

    name: str
    default: str
    meaning: str


def environment_ids() -> list[str]:
    """Return the ids of this package's environments."""
    return sorted(name for name, spec in gym.registry.items() if spec.namespace == NAMESPACE)


def find_environment(env_id: str) -> EnvSpec:
    """Return the specification of any registered environment, "module:id" included; `UnknownNameError` if unknown."""
    try:
        return gym.spec(env_id)
    except (gym.error.Error, ImportError) as error:
        hint = "(an environment of another package: 'module:id', so that it is imported)"
        raise UnknownNameError("environment", env_id, environment_ids(), hint) from error


def keywords_of(spec: EnvSpec) -> list[Keyword]:
    """Return the keywords of an environment, `render_mode` included, in their order.

    They are the fields of the class's `config_type`, if it has one; else the parameters of its signature.
    """
    creator = creator_of(spec)
    config_type = getattr(creator, "config_type", None)
    if config_type is not None:
        meanings = field_meanings(config_type)
        defaults = {
            one.name: repr(one.default if one.default_factory is MISSING else one.default_factory())
            for one in fields(config_type)
        }
    else:
        meanings = section_entries(inspect.getdoc(creator) or "", "Args")
        defaults = dict(map(_default, inspect.signature(creator).parameters.values()))
    return [Keyword(name, default, meanings.get(name.lstrip("*"), "")) for name, default in defaults.items()]


def list_environments(console: Console) -> None:
    """Print every id of the package with its spaces and defaults."""
    table = Table(box=box.SIMPLE_HEAD, show_lines=False)
    table.add_column("id", no_wrap=True, style="bold")
    table.add_column("without keywords", overflow="fold")
    for env_id in environment_ids():
        actions, observations = DEFAULT_SPACES[env_id]
        about = Table.grid(padding=(0, 1, 0, 0))
        about.add_column(no_wrap=True, style="dim")
        about.add_column(overflow="fold")
        about.add_row("about", Text(_summary(env_id)))
        about.add_row("actions", Text(actions))
        about.add_row("observes", Text(observations))
        defaults = [f"{keyword.name}={keyword.default}" for keyword in keywords_of(gym.spec(env_id))]
        about.add_row("defaults", Text(", ".join(defaults)), end_section=True)
        table.add_row(env_id, about, end_section=True)
    console.print(table)
    console.print("ra3gym envs ID explains one; ra3gym play ID steps it here.", highlight=False)


def describe_environment(env_id: str, console: Console) -> None:
    """Print what an environment's class documents, and its keywords with their defaults.

    Raises:
        UnknownNameError: no such environment.
    """
    spec = find_environment(env_id)
    prose, _, _ = (inspect.getdoc(creator_of(spec)) or "").partition("\nArgs:")
    console.print(Text(spec.id, style="bold"))
    if spec.id in DEFAULT_SPACES:
        actions, observations = DEFAULT_SPACES[spec.id]
        console.print(Text(f"without keywords: actions {actions}, observations {observations}\n"))
    console.print(Markdown(prose))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("keyword", no_wrap=True, style="bold")
    table.add_column("default", overflow="fold")
    table.add_column("", overflow="fold", ratio=1)
    for keyword in keywords_of(spec):
        table.add_row(keyword.name, Text(keyword.default), Text(keyword.meaning.replace("`", "")))
    console.print(table)


def creator_of(spec: EnvSpec) -> Any:
    """Return the environment's class, or the function that makes it."""
    return load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point


def _summary(env_id: str) -> str:
    """Return what a step is: the part of the module's first line after the id."""
    first = (inspect.getdoc(inspect.getmodule(creator_of(gym.spec(env_id)))) or "").partition("\n")[0]
    return first.partition(": ")[2].replace("`", "").rstrip(".")


def _default(parameter: inspect.Parameter) -> tuple[str, str]:
    """Return a parameter's name and its default as Python, "" if it has none."""
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}", ""
    return parameter.name, "" if parameter.default is parameter.empty else repr(parameter.default)
