"""`ra3gym/LatentCode-v0`: Gymnasium's contract, what a segment is, and the same reward as token by token."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from ra3gym import lm
from ra3gym.envs.code.latent import LatentCodeEnv
from ra3gym.envs.code.token import TokenCodeEnv
from ra3gym.errors import ConfigError, ModelError, UnknownNameError
from ra3gym.tasks import CodeTask, FunctionTests, load_tasks
from tests.envs.code.code_vector_cases import trail

ID = "ra3gym/LatentCode-v0"
VARIANTS: list[dict[str, Any]] = [
    {},
    {"observation": "tokens", "decoder": "greedy"},
    {"observation": "dict", "top_k": 2},
    {"reward": "all", "segment_lines": 1, "min_prob": 0.2, "observation": "dict"},
    {"segment_tokens": 3, "segment_lines": None, "temperature": 0.5, "max_decisions": 4},
]
K = 4

DOUBLE = CodeTask("double", "def f(x):\n", "f", FunctionTests((([1, 2],), ([],), ([-1],)), ([2, 4], [], [-2])))
FIRST = CodeTask("first", "# first\ndef f(x):\n", "f", FunctionTests((([3],), ([1, 1],)), (3, 1)))
TASKS = [DOUBLE, FIRST]


@pytest.fixture(scope="session")
def loaded(tiny_model_folder: Path) -> lm.LoadedModel:
    return lm.load(tiny_model_folder)


@pytest.fixture(scope="session")
def embedded() -> lm.LoadedModel:
    return lm.load("embedded")


@pytest.fixture
def make(loaded: lm.LoadedModel) -> Iterator[Any]:
    """Makes environments over the two tasks above, and closes them."""
    made: list[gym.Env[Any, Any]] = []

    def build(kind: Any = LatentCodeEnv, **options: Any) -> Any:
        made.append(kind(**({"model": loaded, "tasks": TASKS} | options)))
        return made[-1]

    yield build
    for env in made:
        env.close()


class Scripted(torch.nn.Module):
    """A model that continues after each token by a table: `{token: {next token: probability}}`."""

    def __init__(self, base: Any, table: dict[int, dict[int, float]]) -> None:
        super().__init__()
        self.config, self.generation_config, self.device = base.config, base.generation_config, base.device
        self.logits_VV = torch.full((base.config.vocab_size, base.config.vocab_size), -30.0)
        for token, following in table.items():
            for after, probability in following.items():
                self.logits_VV[token, after] = float(np.log(probability))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden = torch.nn.functional.one_hot(input_ids % 16, 16).float()
        return type(
            "Output",
            (),
            {"logits": self.logits_VV[input_ids], "hidden_states": (hidden,), "past_key_values": None},
        )()


@pytest.fixture
def scripted(loaded: lm.LoadedModel) -> Any:
    """A model of one line per latent: after `<|z0|>` it writes the first text, and then asks for `<|z1|>`."""

    def build(*texts: str, then: dict[int, float] | None = None) -> lm.LoadedModel:
        tokenizer: Any = loaded.tokenizer
        latents = lm.latent_ids(tokenizer)
        table: dict[int, dict[int, float]] = {}
        for latent, text in zip(latents, texts, strict=False):
            at = latent
            for token in tokenizer.encode(text, add_special_tokens=False):
                assert at not in table, "a table cannot write one token twice"
                table[at], at = {token: 1.0}, token
            table[at] = then or {latents[1]: 1.0}
        return lm.LoadedModel(Scripted(loaded.model, table), tokenizer)

    return build


# Gymnasium's contract


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gymnasium_finds_nothing_to_say(tiny_model_folder: Path, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, model=str(tiny_model_folder), max_new_tokens=160, **options)
        check_env(env.unwrapped)
        env.close()
        env.close()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_stable_baselines3_finds_nothing_to_say(make: Any, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_sb3(make(max_new_tokens=24, **options))


def test_spec_survives_json_and_pickle(tiny_model_folder: Path) -> None:
    env = gym.make(ID, model=str(tiny_model_folder), observation="dict", max_new_tokens=9, decoder="greedy", top_k=3)
    assert env.spec is not None
    for spec in (gym.envs.registration.EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gym.make(spec)
        assert spec.kwargs == env.spec.kwargs
        assert data_equivalence(again.reset(seed=3), env.reset(seed=3))
        again.close()
    json.dumps(env.spec.kwargs)
    env.close()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_same_seed_and_actions_same_bytes(make: Any, options: dict[str, Any]) -> None:
    first, second, other = (trail(make(max_new_tokens=24, **options), seed, 12) for seed in (1, 1, 2))
    assert data_equivalence(first, second, exact=True)
    assert not data_equivalence(first, other)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_observations_masks_and_infos_agree(make: Any, options: dict[str, Any]) -> None:
    env = make(max_new_tokens=40, **options)
    env.action_space.seed(0)
    observation, info = env.reset(seed=0)
    spent, written = 0, ""
    for _ in range(20):
        assert observation in env.observation_space
        assert info["logprobs"].shape == info["action_mask"].shape == (K,)
        assert np.exp(info["logprobs"]).sum() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_array_equal(info["action_mask"], env.action_masks())
        assert info["action_mask"][info["logprobs"].argmax()]
        if options.get("observation") == "dict":
            np.testing.assert_array_equal(observation["mask"], info["action_mask"])
        action = env.action_space.sample(info["action_mask"])
        observation, _, terminated, truncated, info = env.step(action)
        assert not (terminated and truncated)
        spent += info["duration"]["tokens"]
        written += f"<|z{action}|>{info['segment']}"
        assert spent <= 40
        assert env.completion == written
        if terminated or truncated:
            assert info["verdict"] is env.verdict
            observation, info = env.reset()
            spent, written = 0, ""


# A segment


def test_decoder_writes_until_it_asks_for_a_latent(make: Any, scripted: Any) -> None:
    env = make(model=scripted("    y = 2\n"))
    env.reset(options={"task_id": "double"})
    _, reward, terminated, truncated, info = env.step(np.int64(0))
    tokens = len(env.problem.loaded.tokenizer.encode("    y = 2\n")) + 1
    assert env.completion == "<|z0|>    y = 2\n"  # <|z1|>, which it asks for, is not written
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["duration"] == {"lines": 1, "tokens": tokens}
    assert info["segment"] == "    y = 2\n"
    assert info["logprobs"].argmax() == 1
    assert not info["illegal_action"]


def test_end_token_terminates_and_program_is_graded_without_latents(
    make: Any, loaded: lm.LoadedModel, scripted: Any
) -> None:
    model = scripted("    return x[0]\n", then={loaded.tokenizer.eos_token_id: 1.0})
    for reward_kind in ("fraction", "all"):
        env = make(model=model, reward=reward_kind)
        env.reset(options={"task_id": "first"})
        _, reward, terminated, truncated, info = env.step(np.int64(0))
        assert (reward, terminated, truncated) == (1.0, True, False)
        assert info["verdict"].passed
        assert env.program == FIRST.prompt + "    return x[0]\n"
        env.reset(options={"task_id": "double"})  # an empty list has no first element, and [1, 2] wants a list
        assert env.step(np.int64(0))[1] == 0.0


def test_shaping_adds_its_terms_to_the_reward(make: Any, loaded: lm.LoadedModel, scripted: Any) -> None:
    end = {loaded.tokenizer.eos_token_id: 1.0}
    shaping = {"format": 0.5, "length": -1.0}
    for text, tests, parses in (("    return x[0]\n", 1.0, 1.0), ("    return x[\n", 0.0, 0.0)):
        env = make(model=scripted(text, then=end), max_new_tokens=100, shaping=shaping)
        env.reset(options={"task_id": "first"})
        _, reward, terminated, _, info = env.step(np.int64(0))
        spent = info["duration"]["tokens"]
        assert terminated
        assert info["reward_terms"] == {"tests": tests, "format": 0.5 * parses, "length": -spent / 100}
        assert reward == pytest.approx(tests + 0.5 * parses - spent / 100)


def test_cut_off_program_is_graded_all_the_same(make: Any, loaded: lm.LoadedModel, scripted: Any) -> None:
    program = loaded.tokenizer.encode("    return x[0]\n")
    env = make(model=scripted("    return x[0]\n"), max_new_tokens=len(program) + 1)
    env.reset(options={"task_id": "first"})
    _, reward, terminated, truncated, info = env.step(np.int64(0))
    assert (reward, terminated, truncated) == (1.0, False, True)
    assert info["duration"] == {"lines": 1, "tokens": len(program) + 1}


def test_a_program_cut_within_a_line_counts_that_line(make: Any, scripted: Any) -> None:
    env = make(model=scripted("    y = 2\n"), max_new_tokens=3)
    env.reset()
    info = env.step(np.int64(0))[-1]
    assert info["duration"] == {"lines": 1, "tokens": 3}
    assert info["verdict"].score == 0.0


def test_caps_of_lines_and_tokens_hand_the_choice_back(make: Any, loaded: lm.LoadedModel, scripted: Any) -> None:
    (more,) = loaded.tokenizer.encode("q")
    model = scripted("    y = 2\n", then={more: 1.0})  # it would continue, and never ask for a latent
    for options, expected in (
        ({"segment_lines": 1}, {"lines": 1, "text": "    y = 2\n"}),
        ({"segment_lines": None, "segment_tokens": 1}, {"lines": 0, "text": "    "}),
    ):
        env = make(model=model, **options)
        env.reset()
        _, _, terminated, truncated, info = env.step(np.int64(0))
        assert (terminated, truncated) == (False, False)
        assert (info["duration"]["lines"], info["segment"]) == (expected["lines"], expected["text"])


def test_a_latent_right_after_a_latent_leaves_an_empty_segment(make: Any, scripted: Any) -> None:
    env = make(model=scripted("", then={}))
    env.reset()
    latents = env._batch.latent_ids
    env.problem.loaded.model.logits_VV[latents[0], latents[2]] = 0.0
    info = env.step(np.int64(0))[-1]
    assert (info["segment"], info["duration"]) == ("", {"lines": 0, "tokens": 1})


def test_decisions_can_be_limited(make: Any) -> None:
    env = make(max_decisions=2, segment_tokens=1)
    env.reset(seed=0)
    assert env.step(np.int64(0))[2:4] == (False, False)
    _, _, terminated, truncated, info = env.step(np.int64(0))
    assert terminated != truncated
    assert "verdict" in info


def test_illegal_action_writes_nothing_and_costs_a_decision_and_a_token(make: Any) -> None:
    env = make(top_k=1, max_new_tokens=3)
    before, info = env.reset(options={"task_id": "double"})
    (legal,) = np.flatnonzero(info["action_mask"])
    for action in ((legal + 1) % K, K, -1):
        observation, reward, terminated, truncated, info = env.step(np.int64(action))
        assert info["illegal_action"]
        assert info["duration"] == {"lines": 0, "tokens": 1}
        assert (info["segment"], env.completion) == ("", "")
        np.testing.assert_array_equal(observation, before)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert env.decisions == 3


def test_greedy_decoder_leaves_the_random_stream_alone(make: Any) -> None:
    env = make(decoder="greedy", max_new_tokens=40)
    env.reset(seed=0)
    state = env.np_random.bit_generator.state
    env.step(np.int64(0))
    assert env.np_random.bit_generator.state == state


def test_sampling_decoder_follows_the_models_distribution(make: Any, loaded: lm.LoadedModel, scripted: Any) -> None:
    (newline,) = loaded.tokenizer.encode("\n")
    latents = lm.latent_ids(loaded.tokenizer)
    for temperature in (1.0, 0.5):
        env = make(model=scripted("", "", then={newline: 0.75, latents[1]: 0.25}), temperature=temperature)
        env.problem.loaded.model.logits_VV[newline, latents[1]] = 0.0
        env.reset(seed=0)
        odds = 3.0 ** (1 / temperature)
        wrote = []
        for _ in range(800):
            env._batch.begin([0], [0], [env.np_random])
            wrote.append(env._batch.write_segments([0], [0], [env.np_random])[0].breaks > 0)
        assert np.mean(wrote) == pytest.approx(odds / (1 + odds), abs=0.05)


def test_masks_prune_by_rank_and_by_probability(make: Any) -> None:
    _, info = make().reset(options={"task_id": "first"})
    order = np.argsort(-info["logprobs"])
    threshold = float(np.exp(info["logprobs"][order[2]]))
    for options, kept in (({"top_k": 2}, 2), ({"min_prob": threshold * 0.999}, 3), ({"min_prob": 0.999}, 1)):
        _, pruned = make(**options).reset(options={"task_id": "first"})
        assert np.flatnonzero(pruned["action_mask"]).tolist() == sorted(order[:kept].tolist())


# The pair


def test_an_expert_earns_the_same_at_both_levels_in_fewer_decisions(make: Any, embedded: lm.LoadedModel) -> None:
    """Write the model's likeliest tokens, latents included, one by one; then choose the same latents alone."""
    tasks = load_tasks("idioms", split="rl")[:12]
    options = {"model": embedded, "tasks": tasks}
    by_token, by_latent = make(TokenCodeEnv, **options), make(decoder="greedy", **options)
    latents = lm.latent_ids(embedded.tokenizer)
    decisions, tokens, rewards = 0, 0, []
    for task in tasks:
        _, info = by_token.reset(options={"task_id": task.task_id})
        over, plan = False, []
        while not over:
            token = int(info["candidates"][0])
            plan += [latents.index(token)] if token in latents else []
            _, reward, terminated, truncated, info = by_token.step(np.int64(0))
            over = terminated or truncated
            tokens += 1
        by_latent.reset(options={"task_id": task.task_id})
        for latent in plan:
            _, same_reward, same_terminated, same_truncated, _ = by_latent.step(np.int64(latent))
        assert (same_reward, same_terminated, same_truncated) == (reward, terminated, truncated)
        assert by_latent.completion == by_token.completion
        decisions += len(plan)
        rewards.append(reward)
    assert np.mean(rewards) > 0.5
    assert tokens > 10 * decisions


# Choosing and refusing


def test_it_works_with_no_arguments() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID)
        check_env(env.unwrapped)
    rewards = []
    for seed in range(6):
        _, info = env.reset(seed=seed)
        over = False
        while not over:  # the model's own choice
            _, reward, terminated, truncated, info = env.step(int(info["logprobs"].argmax()))
            over = terminated or truncated
        rewards.append(reward)
    assert max(rewards) == 1.0
    env.close()


def test_default_tasks_are_those_of_the_token_level(make: Any) -> None:
    assert make(tasks="idioms").task_ids == [task.task_id for task in load_tasks("idioms", split="rl")]


def test_render_shows_latents_and_tests(
    make: Any, loaded: lm.LoadedModel, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    model = scripted("    return x[0]\n", then={loaded.tokenizer.eos_token_id: 1.0})
    env = make(model=model, render_mode="ansi")
    env.reset(options={"task_id": "first"})
    assert env.render() == "# first: 0 decisions, 0 of 192 tokens\n# first\ndef f(x):\n\n"
    env.step(np.int64(0))
    tokens = len(loaded.tokenizer.encode("    return x[0]\n")) + 2
    assert env.render() == (
        f"# first: 1 decision, {tokens} of 192 tokens, 2 of 2 tests passed (passed)\n"
        "# first\ndef f(x):\n<|z0|>    return x[0]\n\n"
    )


def test_model_without_latents_is_refused(tmp_path: Path) -> None:
    tokenizer = lm.train_tokenizer(["def f(x):\n    return x\n"], vocab_size=270)
    model = lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, seed=0)
    with pytest.raises(ModelError, match=r"knows no latents.*add_latents"):
        LatentCodeEnv(lm.LoadedModel(model, tokenizer), TASKS)


def test_step_outside_an_episode_asks_for_reset(make: Any) -> None:
    env = make(max_new_tokens=1)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset()
    env.step(np.int64(0))
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "beam"}, "'sample', 'greedy'"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"segment_lines": 0}, "segment_lines=0"),
        ({"segment_tokens": -1}, "segment_tokens=-1"),
        ({"max_decisions": 0}, "max_decisions=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"min_prob": 1.0}, "min_prob=1.0"),
        ({"observation": "text"}, "'hidden', 'tokens', 'dict'"),
        ({"reward": "some"}, "'fraction', 'all'"),
        ({"shaping": {"style": 1.0}}, "'style'.*'format', 'length'"),
        ({"shaping": {"length": "short"}}, "'length' must be a finite number"),
        ({"shaping": {"format": float("nan")}}, "'format' must be a finite number"),
        ({"render_mode": "human"}, "None or 'ansi'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"tasks": []}, "holds no task"),
        ({"max_new_tokens": 600}, "'first'.*positions"),
    ],
)
def test_wrong_options_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_unknown_names_are_refused(make: Any) -> None:
    env = make()
    with pytest.raises(UnknownNameError, match=r"'dubble'.*Did you mean 'double'"):
        env.reset(options={"task_id": "dubble"})
    with pytest.raises(ConfigError, match=r"'task'.*'task_id'"):
        env.reset(options={"task": "double"})
