"""The command `ra3gym play`: one episode of an environment in the terminal, by hand or by a simple policy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ra3gym.abstractions.latents.words import latent_words
from ra3gym.errors import ConfigError, UnknownNameError
from ra3gym.experiments.commands.envs import creator_of, find_environment

Env: TypeAlias = gym.Env[Any, Any]
PolicyName = Literal["by-hand", "random", "likeliest", "sample"]

SHOWN_ACTIONS = 12
"""How many legal actions are listed at each step by hand, the likeliest first."""


_SHOWN_WORDS = 3
"""How many of a latent's words are shown."""


@dataclass(frozen=True)
class Choice:
    """A legal action.

    Attributes:
        action: its number.
        name: what it means.
        logprob: nats, if the environment gives log-probabilities.
    """

    action: int
    name: str
    logprob: float | None


Policy: TypeAlias = Callable[[Sequence[Choice]], int | None]
"""From the legal actions, likeliest first, to the number of one of them; `None` stops."""


def play(
    env_id: str,
    console: Console,
    *,
    policy: PolicyName = "by-hand",
    seed: int = 0,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Play one episode: print what happens, and by hand also the program or state and the legal actions at each step.

    Args:
        env_id: any registered environment with Discrete actions and the render mode "ansi".
        console: prints the episode, and asks for actions.
        policy: "by-hand" asks for each action; "random" takes any legal one; "likeliest" and "sample" use
            `info["logprobs"]`.
        seed: of the environment, and of a random policy.
        steps: stop after so many steps; `None` plays to the end.
        options: for `reset`, such as a task id.
        kwargs: keywords of the environment.

    Raises:
        ConfigError: keywords or options that the environment refuses, or an environment that cannot be played.
        UnknownNameError: no such environment, keyword, or task.
    """
    if steps is not None and steps < 1:
        raise ConfigError(f"steps={steps}: take at least 1, or leave it out to play to the end")
    with console.status(f"making {env_id}"):
        env = make_playable(find_environment(env_id), dict(kwargs or {}))
    with closing(env):
        _, info = env.reset(seed=seed, options=dict(options) if options else None)
        choose = _policy(policy, np.random.default_rng(seed), console)
        if policy in ("likeliest", "sample") and "logprobs" not in info:
            raise ConfigError(f"policy={policy!r} needs info['logprobs'], which {env_id} does not give: take 'random'")
        _play(env, info, choose, console, by_hand=policy == "by-hand", steps=steps)


def make_playable(spec: EnvSpec, kwargs: Mapping[str, Any]) -> Env:
    """Make an environment that renders text; errors as in `play`."""
    creator = creator_of(spec)
    parameters = inspect.signature(creator).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):  # such a class refuses names itself
        for name in kwargs:
            if name not in parameters:
                raise UnknownNameError(f"keyword of {spec.id}", name, parameters)
    if "render_mode" in kwargs:
        raise ConfigError(f"render_mode={kwargs['render_mode']!r}: it is 'ansi' in a terminal, so leave it out")
    modes = getattr(creator, "metadata", {}).get("render_modes", [])
    if "ansi" not in modes:
        raise ConfigError(f"{spec.id} has no render mode 'ansi', only {modes}: it cannot be shown in a terminal")
    try:
        env: Env = gym.make(spec, render_mode="ansi", **kwargs)
    except TypeError as error:
        raise ConfigError(f"{spec.id} does not take these keywords: {error}") from error
    if not isinstance(env.action_space, gym.spaces.Discrete):
        raise ConfigError(f"{spec.id} has the actions {env.action_space}: only Discrete ones can be chosen by number")
    return env


def legal_choices(env: Env, info: Mapping[str, Any]) -> list[Choice]:
    """Return the legal actions, likeliest first if the infos have log-probabilities."""
    space = env.action_space
    assert isinstance(space, gym.spaces.Discrete)
    mask = np.asarray(info.get("action_mask", np.ones(space.n))).astype(bool)
    logprobs: npt.NDArray[Any] | None = info.get("logprobs")
    legal = np.flatnonzero(mask)
    if logprobs is not None:
        legal = legal[np.argsort(-logprobs[legal], kind="stable")]
    name = _namer(env, info)
    return [
        Choice(int(space.start + i), name(i), None if logprobs is None else float(logprobs[i])) for i in legal.tolist()
    ]


def _namer(env: Env, info: Mapping[str, Any]) -> Callable[[int], str]:
    """Return what names an action: by its token, its comment, its latent, or its number as primitive or option."""
    bare: Any = env.unwrapped
    if "candidates" in info:
        tokenizer = bare.problem.loaded.tokenizer
        return lambda i: repr(tokenizer.decode([int(info["candidates"][i])], clean_up_tokenization_spaces=False))
    if "proposals" in info:
        return lambda i: repr(info["proposals"][i - 1]) if i else "no comment"
    if hasattr(bare, "mdp"):
        A, actions = bare.mdp.num_primitives, bare.mdp.action_indices(bare.actions)
        return lambda i: f"primitive {actions[i]}" if actions[i] < A else f"option {actions[i] - A}"
    if not hasattr(bare, "problem"):
        return lambda i: ""
    words = _latent_words(env.spec)
    return lambda i: f"z{i} {' '.join(words[i][:_SHOWN_WORDS])}" if i < len(words) and words[i] else f"z{i}"


def _latent_words(spec: EnvSpec | None) -> Sequence[Sequence[str]]:
    """Return the prompt words of each latent of the environment's model; empty where its folder does not have them."""
    model = "embedded" if spec is None else spec.kwargs.get("model", "embedded")
    return latent_words(model) if isinstance(model, str) else ()


def _play(
    env: Env, info: dict[str, Any], choose: Policy, console: Console, *, by_hand: bool, steps: int | None
) -> None:
    total, taken, over = 0.0, 0, False
    while not over and taken != steps:
        if by_hand:
            console.print(_rendered(env))
        choices = legal_choices(env, info)
        action = choose(choices)
        if action is None:
            break
        (chosen,) = (choice for choice in choices if choice.action == action)
        _, reward, terminated, truncated, info = env.step(np.int64(action))
        total, taken, over = total + float(reward), taken + 1, terminated or truncated
        console.print(Text(_step_line(taken, chosen, float(reward), info)))
    if over or not by_hand:
        console.print(_rendered(env))
    ending = ("terminated" if terminated else "truncated") if over else "stopped"
    console.print(f"{ending} after {taken} {'step' if taken == 1 else 'steps'}, return {total:g}", highlight=False)


def _rendered(env: Env) -> Text:
    """Return what an environment shows, in colors that rich prints on terminals that have them."""
    return Text.from_ansi(str(env.render()).rstrip("\n"))


def _step_line(step: int, chosen: Choice, reward: float, info: Mapping[str, Any]) -> str:
    """Return one line on a step."""
    parts = [f"step {step}: action {chosen.action}"]
    if chosen.name:
        parts.append(chosen.name)
    if chosen.logprob is not None:
        parts.append(f"p {np.exp(chosen.logprob):.3f}")
    parts.append(f"reward {reward:g}")
    parts += [f"{unit} {amount}" for unit, amount in info.get("duration", {}).items()]
    if info.get("illegal_action"):
        parts.append("illegal")
    if info.get("segment"):
        parts.append(repr(info["segment"]))
    return ", ".join(parts)


def _policy(name: PolicyName, rng: np.random.Generator, console: Console) -> Policy:
    """Return the policy of that name."""

    def at_random(choices: Sequence[Choice]) -> int:
        return choices[int(rng.integers(len(choices)))].action

    def likeliest(choices: Sequence[Choice]) -> int:
        return choices[0].action

    def sample(choices: Sequence[Choice]) -> int:
        share = np.exp([choice.logprob or 0.0 for choice in choices])
        return choices[int(rng.choice(len(choices), p=share / share.sum()))].action

    def by_hand(choices: Sequence[Choice]) -> int | None:
        rated = choices[0].logprob is not None
        _show(choices, console)
        asked = f"action (Enter: {'the likeliest' if rated else 'a random one'}, q: quit)> "
        while (answer := _ask(console, asked)) is not None and answer != "q":
            if not answer:
                return likeliest(choices) if rated else at_random(choices)
            numbers = [choice.action for choice in choices]
            if answer.lstrip("-").isdecimal() and int(answer) in numbers:
                return int(answer)
            wrong = "is not legal here" if answer.lstrip("-").isdecimal() else "is not a number"
            console.print(Text(f"{answer} {wrong}: give one of {len(numbers)} legal actions, such as {numbers[0]}"))
        return None

    policies: dict[str, Policy] = {
        "by-hand": by_hand,
        "random": at_random,
        "likeliest": likeliest,
        "sample": sample,
    }
    return policies[name]


def _ask(console: Console, asked: str) -> str | None:
    """Return a line of input; `None` if the input has ended."""
    try:
        return console.input(asked, markup=False).strip()
    except EOFError:
        console.print()
        return None


def _show(choices: Sequence[Choice], console: Console) -> None:
    """Print the legal actions: the likeliest as a table, or all in one line if there are no log-probabilities."""
    if choices[0].logprob is None:
        named = [f"{one.action}: {one.name}" if one.name else str(one.action) for one in choices]
        console.print(Text(f"legal: {', '.join(named)}"))
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right")
    for choice in choices[:SHOWN_ACTIONS]:
        grid.add_row(f"  {choice.action}", Text(choice.name), f"p {np.exp(choice.logprob or 0.0):.3f}")
    console.print(grid)
    if len(choices) > SHOWN_ACTIONS:
        console.print(Text(f"  and {len(choices) - SHOWN_ACTIONS} more, none likelier"))
