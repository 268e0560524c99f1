"""`ra3gym envs` and `ra3gym play`, as the command line runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from rich.console import Console

from ra3gym import lm
from ra3gym.abstractions.latents.corpus import prompt_words
from ra3gym.abstractions.latents.words import latent_words, save_latent_words
from ra3gym.cli import main
from ra3gym.envs.keywords import field_names
from ra3gym.errors import ConfigError, DataError
from ra3gym.experiments.commands.envs import (
    DEFAULT_SPACES,
    describe_environment,
    environment_ids,
    find_environment,
    keywords_of,
    list_environments,
)
from ra3gym.experiments.commands.play import play
from ra3gym.experiments.commands.settings import parse_setting, split_settings
from ra3gym.tasks.idioms import IdiomsDomain

OPTION_MDP, TOKEN_CODE = "ra3gym/OptionMDP-v0", "ra3gym/TokenCode-v0"
LATENT_CODE, TRACE_INFERENCE = "ra3gym/LatentCode-v0", "ra3gym/TraceInference-v0"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ra3gym", *map(str, arguments)]


def ra3gym(*arguments: object, given: str = "", columns: int = 100) -> subprocess.CompletedProcess[str]:
    """Run the command with these lines on its standard input, which is no terminal."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": str(columns), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command(*arguments), input=given, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `ra3gym play` prints with these arguments and this input, in this process: models load faster here."""

    def printed(*arguments: object, given: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", StringIO(given))
        assert main(["play", *map(str, arguments)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return printed


def shown(function: Callable[..., object], *arguments: object, width: int) -> list[str]:
    out = StringIO()
    function(*arguments, Console(file=out, width=width))
    return out.getvalue().splitlines()


# ra3gym envs


def test_the_listed_spaces_are_those_of_the_environments() -> None:
    assert set(DEFAULT_SPACES) == set(environment_ids())
    for env_id, spaces in DEFAULT_SPACES.items():
        kwargs = {"num_traces": 2} if env_id == TRACE_INFERENCE else {}  # all of them take longer, and are no wider
        with_defaults = gym.make(env_id, **kwargs)
        assert (str(with_defaults.action_space), str(with_defaults.observation_space)) == spaces
        with_defaults.close()


@pytest.mark.parametrize("width", [80, 160])
def test_the_list_has_every_id_space_and_default(width: int) -> None:
    lines = shown(list_environments, width=width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for env_id, (actions, observations) in DEFAULT_SPACES.items():
        assert env_id in text
        assert f"actions {actions}" in text
        assert f"observes {observations}" in text
    for default in ("top_k=32", "decoder='sample'", "num_traces=32", "horizon=100", "family={}"):
        assert default in text


@pytest.mark.parametrize("env_id", environment_ids())
def test_every_keyword_is_explained_with_its_default(env_id: str) -> None:
    spec = find_environment(env_id)
    keywords = keywords_of(spec)
    creator = gym.envs.registration.load_env_creator(str(spec.entry_point))
    assert [one.name for one in keywords] == field_names(creator.config_type)
    assert [one.name for one in keywords if not one.meaning] == []
    lines = shown(describe_environment, env_id, width=80)
    assert max(map(len, lines)) <= 80
    for keyword in keywords:
        rows = [line for line in lines if line.split()[:1] == [keyword.name]]
        assert any(keyword.default in row for row in rows)


def test_what_a_base_configuration_documents_is_taken_from_there() -> None:
    own = {one.name: one.meaning for one in keywords_of(find_environment(TOKEN_CODE))}
    latent = {one.name: one.meaning for one in keywords_of(find_environment(LATENT_CODE))}
    assert latent["tasks"] == own["tasks"] != ""
    assert latent["top_k"] != own["top_k"]


def test_envs_on_the_command_line() -> None:
    listed = ra3gym("envs", columns=80)
    assert listed.returncode == 0
    assert TOKEN_CODE in listed.stdout
    explained = ra3gym("envs", OPTION_MDP)
    assert explained.returncode == 0
    assert "instance_seed" in explained.stdout
    unknown = ra3gym("envs", "ra3gym/TokenCod-v0")
    assert unknown.returncode == 1
    assert "unknown environment" in unknown.stderr
    assert "Did you mean 'ra3gym/TokenCode-v0'?" in unknown.stderr


# ra3gym play


def test_a_policy_plays_to_the_end(played: Callable[..., str]) -> None:
    printed = played(OPTION_MDP, "--policy", "random", "--seed", 1, "horizon=12").splitlines()
    steps = [line for line in printed if line.startswith("step ")]
    durations = [int(re.findall(r"steps (\d+)", line)[0]) for line in steps]
    assert sum(durations) <= 12
    rewards = [float(re.findall(r"reward (\S+),", line)[0]) for line in steps]
    ending = re.fullmatch(r"(terminated|truncated) after (\d+) steps?, return (\S+)", printed[-1])
    assert ending is not None
    assert int(ending[2]) == len(steps)
    assert float(ending[3]) == pytest.approx(sum(rewards), abs=1e-3)
    again = played("horizon=12", OPTION_MDP, "--seed", 1, "--policy", "random").splitlines()
    assert again == printed


def test_the_likeliest_latents_write_a_program_that_is_graded(
    tiny_model_folder: Path, played: Callable[..., str]
) -> None:
    settings = (f"model={tiny_model_folder}", "max_new_tokens=12", "segment_tokens=2", "decoder=greedy")
    printed = played(LATENT_CODE, *settings, "--policy", "likeliest")
    assert re.search(r"step 1: action \d, z\d, p 0\.\d+, reward 0, lines \d+, tokens \d", printed)
    assert re.search(r"\d of \d+ tests passed", printed)
    assert re.search(r"(terminated|truncated) after \d+ steps?", printed)


def test_latents_are_shown_with_their_words(played: Callable[..., str]) -> None:
    printed = played(LATENT_CODE, "decoder=greedy", "--policy", "likeliest", "--steps", 1)
    (action, words) = re.findall(r"step 1: action (\d+), z\1? ?(.*?), p 0\.\d+", printed)[0]
    named = latent_words("embedded")
    assert len(named) == 48
    assert f"action {action}, z{action}" in printed
    assert words.split()[-3:] == list(named[int(action)][:3]) or not named[int(action)]


def test_words_of_a_models_latents(tmp_path: Path) -> None:
    assert latent_words(str(tmp_path)) == ()
    save_latent_words(tmp_path, [("sort", "order"), ()])
    assert latent_words(str(tmp_path)) == (("sort", "order"), ())
    (tmp_path / "latents.json").write_text("[]")
    with pytest.raises(DataError, match=r"latents.json is damaged"):
        latent_words(str(tmp_path))


def test_the_embedded_model_begins_with_latents_of_the_first_prompt_word() -> None:
    """The words that ship with the checkpoint are those of its own latents."""
    loaded, named = lm.load("embedded"), latent_words("embedded")
    latents = lm.latent_ids(loaded.tokenizer)
    traces = [trace for trace in IdiomsDomain().traces(60) if prompt_words(trace.prompt)]
    calls = 0
    for trace in traces:
        ids = torch.tensor([lm.encode_prompt(loaded.tokenizer, trace.prompt)])
        with torch.inference_mode():
            likeliest = int(loaded.model(ids).logits[0, -1, latents].argmax())
        calls += prompt_words(trace.prompt)[0] in named[likeliest]
    assert calls >= 0.7 * len(traces)


@pytest.mark.parametrize("terminal", [True, False])
def test_segments_are_colored_in_a_terminal_and_nowhere_else(
    terminal: bool, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("NO_COLOR", "COLORTERM", "TERM", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    out = StringIO()
    console = Console(file=out, width=100, force_terminal=terminal, color_system="truecolor" if terminal else "auto")
    options = {"model": str(tiny_model_folder), "max_new_tokens": 12}
    play(LATENT_CODE, console, policy="likeliest", steps=1, kwargs=options)
    assert re.search(r"<\|z\d\|>", out.getvalue())
    assert ("\x1b[38;2;0;0;0;48;2;" in out.getvalue()) == terminal
    assert ("\x1b" in out.getvalue()) == terminal


def test_sampled_tokens_are_shown_as_text(tiny_model_folder: Path, played: Callable[..., str]) -> None:
    printed = played(TOKEN_CODE, f"model={tiny_model_folder}", "--policy", "sample", "--steps", 3, "top_k=5")
    assert len(re.findall(r"^step \d: action [0-4], ['\"].*['\"], p 0\.\d+", printed, re.MULTILINE)) == 3
    assert "stopped after 3 steps" in printed


def test_by_hand_with_mistakes_until_the_input_ends(tiny_model_folder: Path, played: Callable[..., str]) -> None:
    settings = (f"model={tiny_model_folder}", "num_traces=3")
    printed = played(TRACE_INFERENCE, *settings, "--option", "trace_id=idioms/0/train/1", given="1\nx\n9\n\n")
    assert "# idioms/0/train/1: 0 of" in printed
    assert "legal: 0: z0, 1: z1, 2: z2, 3: z3" in printed
    assert "step 1: action 1, z1, reward -" in printed
    assert "x is not a number: give one of 4 legal actions" in printed
    assert "9 is not legal here" in printed
    assert "step 2: action " in printed
    assert "stopped after 2 steps" in printed


def test_by_hand_the_likeliest_come_first_and_enter_takes_the_first(
    tiny_model_folder: Path, played: Callable[..., str]
) -> None:
    printed = played(TOKEN_CODE, f"model={tiny_model_folder}", "top_k=20", given="\nq\n")
    chances = [float(one) for one in re.findall(r"^ *\d+  .* p (0\.\d+)", printed, re.MULTILINE)][:12]
    assert chances == sorted(chances, reverse=True)
    assert "and 8 more, none likelier" in printed
    assert "step 1: action 0, " in printed
    assert "stopped after 1 step, return 0" in printed


def test_masked_actions_are_not_offered(played: Callable[..., str]) -> None:
    printed = played(OPTION_MDP, "actions=options", "--option", "state=3", given="q\n")
    (legal,) = re.findall(r"^legal: (.*)", printed, re.MULTILINE)
    env = gym.make(OPTION_MDP, actions="options")
    _, info = env.reset(options={"state": 3})
    assert [one.split(":")[0] for one in legal.split(", ")] == [str(i) for i in info["action_mask"].nonzero()[0]]
    assert "option " in legal


def test_a_pipe_that_ends_ends_the_game() -> None:
    done = ra3gym("play", OPTION_MDP, "--option", "state=3", given="\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 1: action " in done.stdout
    assert "stopped after 1 step" in done.stdout


def test_interrupted_it_ends_with_130() -> None:
    playing = subprocess.Popen(
        command("play", OPTION_MDP), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert playing.stdout is not None
    assert playing.stdout.readline().startswith("# state")  # it has begun, and asks
    playing.send_signal(signal.SIGINT)
    _, errors = playing.communicate()
    assert playing.returncode == 130
    assert "Traceback" not in errors


def test_environments_of_others_can_be_played(played: Callable[..., str]) -> None:
    printed = played("FrozenLake-v1", "is_slippery=False", "--policy", "random", "--steps", 2)
    assert len(re.findall(r"^step \d: action [0-3], reward 0", printed, re.MULTILINE)) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TokenCode-v0"], "unknown environment 'TokenCode-v0'; known: .* Did you mean 'ra3gym/TokenCode-v0'"),
        (["no_such_module:Env-v0"], "unknown environment 'no_such_module:Env-v0'"),
        ([TOKEN_CODE, "topk=3"], "unknown keyword of TokenCodeEnv 'topk'.* Did you mean 'top_k'"),
        ([TOKEN_CODE, "top_k=many"], "does not take these keywords"),
        ([OPTION_MDP, "horizn=3"], "unknown keyword of OptionMDPEnv 'horizn'.* Did you mean 'horizon'"),
        ([OPTION_MDP, "horizon=0"], "horizon=0: an episode has at least 1"),
        ([OPTION_MDP, "render_mode=human"], "render_mode='human': it is 'ansi' in a terminal"),
        ([OPTION_MDP, "--option", "task_id=3"], "unknown reset option 'task_id'; known: 'state'"),
        ([OPTION_MDP, "--option", "state"], "'state': give settings as key=value"),
        ([OPTION_MDP, "horizon"], "'horizon': give settings as key=value"),
        ([OPTION_MDP, "--policy", "likeliest"], r"info\['logprobs'\], which ra3gym/OptionMDP-v0 does not give"),
        ([OPTION_MDP, "--steps", "0"], "steps=0: take at least 1"),
        (["CartPole-v1"], "no render mode 'ansi'"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)


def test_an_unknown_task_is_told_with_others(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", TOKEN_CODE, f"model={tiny_model_folder}", "--option", "task_id=idioms/0/rl/0x"]) == 1
    assert "unknown task 'idioms/0/rl/0x'; known: " in capsys.readouterr().err


def test_only_discrete_actions_can_be_chosen_by_number() -> None:
    class Continuous(gym.Env[object, object]):
        metadata = {"render_modes": ["ansi"]}  # noqa: RUF012 - as Gymnasium declares it
        action_space = gym.spaces.Box(0, 1)
        observation_space = gym.spaces.Box(0, 1)

        def __init__(self, render_mode: str | None = None) -> None:
            self.render_mode = render_mode

    gym.register("ra3gym-test/Continuous-v0", entry_point=Continuous)
    try:
        with pytest.raises(ConfigError, match="only Discrete ones"):
            play("ra3gym-test/Continuous-v0", Console(file=StringIO()))
    finally:
        del gym.registry["ra3gym-test/Continuous-v0"]


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("top_k=8", ("top_k", 8)),
        ("alpha=0.5", ("alpha", 0.5)),
        ("actions=[0, 5]", ("actions", [0, 5])),
        ("max_decisions=None", ("max_decisions", None)),
        ("observation=dict", ("observation", "dict")),
        ("task_id=a=b", ("task_id", "a=b")),
    ],
)
def test_settings_are_python_values_or_text(text: str, setting: object) -> None:
    assert parse_setting(text) == setting


def test_settings_may_stand_anywhere() -> None:
    words = ["a=1", "ID", "--seed", "3", "b=2", "--option", "state=3", "--policy=random"]
    assert split_settings(words) == (["a=1", "b=2"], ["ID", "--seed", "3", "--option", "state=3", "--policy=random"])
