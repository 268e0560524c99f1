"""What `ra3gym envs` shows: the package's environments, their spaces and the keywords that make them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from ra3gym.errors import UnknownNameError

NAMESPACE = "ra3gym"

DEFAULT_SPACES = {
    "ra3gym/LatentCode-v0": ("Discrete(48)", "Box(-10000.0, 10000.0, (64,), float32)"),
    "ra3gym/OptionMDP-v0": ("Discrete(12)", "Box(0.0, 1.0, (24,), float32)"),
    "ra3gym/RationaleCode-v0": ("Discrete(5)", "Box(-10000.0, 10000.0, (64,), float32)"),
    "ra3gym/TokenCode-v0": ("Discrete(32)", "Box(-10000.0, 10000.0, (64,), float32)"),
    "ra3gym/TraceInference-v0": ("Discrete(48)", "Box(-10000.0, 10000.0, (178,), float32)"),
}
"""Action and observation space of each id without keywords: making them would load a model. A test makes them."""


@dataclass(frozen=True)
class Keyword:
    """One keyword of an environment: its default as Python, and what the class says of it."""

    name: str
    default: str
    meaning: str


def environment_ids() -> list[str]:
    """The ids of this package's environments."""
    return sorted(name for name, spec in gym.registry.items() if spec.namespace == NAMESPACE)


def find_environment(env_id: str) -> EnvSpec:
    """The specification of any registered environment, "module:id" included; `UnknownNameError` if there is none."""
    try:
        return gym.spec(env_id)
    except (gym.error.Error, ImportError) as error:
        hint = "(an environment of another package: 'module:id', so that it is imported)"
        raise UnknownNameError("environment", env_id, environment_ids(), hint) from error


def keywords_of(spec: EnvSpec) -> list[Keyword]:
    """The keywords of an environment, `render_mode` included, in their order.

    What a class says is "as in `TokenCodeEnv`", or another of the package, is taken from there.
    """
    creator = creator_of(spec)
    documented = _meanings(creator)
    if reference := re.search(r"as in `(\w+)`", _arguments(creator)):
        family = {one.__name__: one for one in map(creator_of, map(gym.spec, environment_ids()))}
        if reference[1] in family:
            documented = _meanings(family[reference[1]]) | documented
    return [
        Keyword(name, default, documented.get(name.lstrip("*"), ""))
        for name, default in _defaults(inspect.signature(creator))
    ]


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
        defaults = [f"{name}={default}" for name, default in _defaults(inspect.signature(creator_of(gym.spec(env_id))))]
        about.add_row("defaults", Text(", ".join(one.removesuffix("=") for one in defaults)), end_section=True)
        table.add_row(env_id, about, end_section=True)
    console.print(table)
    console.print("ra3gym envs ID explains one; ra3gym play ID steps it here.", highlight=False)


def describe_environment(env_id: str, console: Console) -> None:
    """Print what an environment's class says of itself, and its keywords with their defaults.

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
    """The environment's class, or the function that makes it."""
    return load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point


def _summary(env_id: str) -> str:
    """The part of the module's first line behind the id: what a step is."""
    first = (inspect.getdoc(inspect.getmodule(creator_of(gym.spec(env_id)))) or "").partition("\n")[0]
    return first.partition(": ")[2].replace("`", "").rstrip(".")


def _defaults(signature: inspect.Signature) -> Iterator[tuple[str, str]]:
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            yield f"**{name}", ""
        else:
            yield name, "" if parameter.default is parameter.empty else repr(parameter.default)


def _arguments(creator: type[object]) -> str:
    """The "Args" of a class's docstring."""
    _, _, rest = (inspect.getdoc(creator) or "").partition("\nArgs:\n")
    return re.split(r"^\S", rest, maxsplit=1, flags=re.MULTILINE)[0]


def _meanings(creator: type[object]) -> dict[str, str]:
    """What a docstring says of each keyword, in one line each; nothing where it only names another class."""
    entries = re.split(r"^ {4}(\w+): ", _arguments(creator), flags=re.MULTILINE)[1:]
    found = {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}
    return {name: text for name, text in found.items() if not re.match(r"(as in|see) `", text)}
