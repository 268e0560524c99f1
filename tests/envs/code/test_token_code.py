"""`ra3gym/TokenCode-v0`: Gymnasium's contract, and what an episode of it means."""

from __future__ import annotations

import copy
import json
import pickle
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Net

import ra3gym
from ra3gym import lm
from ra3gym.envs.code.token import TokenCodeEnv
from ra3gym.errors import ConfigError, ModelError, UnknownNameError
from ra3gym.tasks import CodeTask, FunctionTests, load_tasks
from tests.envs.code.code_vector_cases import trail

ID = "ra3gym/TokenCode-v0"
VARIANTS: list[dict[str, Any]] = [
    {},
    {"observation": "tokens"},
    {"observation": "dict"},
    {"action_space": "full"},
    {"action_space": "full", "observation": "dict", "reward": "all"},
]

DOUBLE = CodeTask(
    "double",
    "def f(x):\n",
    "f",
    FunctionTests((([1, 2],), ([],), ([-1],)), ([2, 4], [], [-2])),
    canonical_solution="    return [2 * v for v in x]\n",
)
REVERSE = CodeTask(
    "reverse",
    "# largest first\ndef f(x):\n",
    "f",
    FunctionTests((([1, 2],), ([],), ([3],), ([1, 1],)), ([2, 1], [], [3], [1, 1])),
    canonical_solution="    return sorted(x)[::-1]\n",
)
TASKS = [DOUBLE, REVERSE]


@pytest.fixture(scope="session")
def loaded(tiny_model_folder: Path) -> lm.LoadedModel:
    return lm.load(tiny_model_folder)


@pytest.fixture
def make(loaded: lm.LoadedModel) -> Iterator[Any]:
    """Makes environments over the two tasks above, and closes them."""
    made: list[TokenCodeEnv] = []

    def build(**options: Any) -> TokenCodeEnv:
        made.append(TokenCodeEnv(**({"model": loaded, "tasks": TASKS} | options)))
        return made[-1]

    yield build
    for env in made:
        env.close()


def type_out(env: TokenCodeEnv, info: dict[str, Any], ids: list[int]) -> tuple[Any, ...]:
    """Write these token ids, whatever the action space, and return what the last step returned."""
    step: tuple[Any, ...] = (info,)
    for token in ids:
        (action,) = np.flatnonzero(step[-1]["candidates"] == token)
        step = env.step(np.int64(action))
    return step


def ids_of(loaded: lm.LoadedModel, text: str, *, end: bool = True) -> list[int]:
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    return [*ids, loaded.tokenizer.eos_token_id] if end else ids


# Gymnasium's contract


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gymnasium_finds_nothing_to_say(tiny_model_folder: Path, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, model=str(tiny_model_folder), max_new_tokens=16, **options)
        check_env(env.unwrapped)
        env.close()
        env.close()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_stable_baselines3_finds_nothing_to_say(make: Any, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_sb3(make(max_new_tokens=16, **options))


def test_spec_survives_json_and_pickle(tiny_model_folder: Path) -> None:
    env = gym.make(ID, model=str(tiny_model_folder), observation="tokens", max_new_tokens=5)
    assert env.spec is not None
    for spec in (gym.envs.registration.EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gym.make(spec)
        assert spec.kwargs == env.spec.kwargs
        assert again.observation_space == env.observation_space
        assert data_equivalence(again.reset(seed=3), env.reset(seed=3))
        again.close()
    json.dumps(env.spec.kwargs)
    env.close()


def test_registering_twice_changes_nothing() -> None:
    spec = gym.spec(ID)
    ra3gym.register_envs()
    assert gym.spec(ID) is spec


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_same_seed_same_episode(make: Any, options: dict[str, Any]) -> None:
    first, second, other = (trail(make(max_new_tokens=6, **options), seed, 20) for seed in (1, 1, 2))
    assert data_equivalence(first, second, exact=True)
    assert not data_equivalence(first, other)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_observations_and_masks_stay_in_their_spaces(make: Any, options: dict[str, Any]) -> None:
    env = make(max_new_tokens=12, **options)
    env.action_space.seed(0)
    observation, info = env.reset(seed=0)
    n = int(env.action_space.n)
    for _ in range(12):
        assert observation in env.observation_space
        assert info["candidates"].shape == info["logprobs"].shape == info["action_mask"].shape == (n,)
        np.testing.assert_array_equal(info["action_mask"], env.action_masks())
        if options.get("observation") == "dict":
            np.testing.assert_array_equal(observation["mask"], info["action_mask"])
        observation, _, terminated, truncated, info = env.step(env.action_space.sample(info["action_mask"]))
        assert not (terminated and truncated)
        if terminated or truncated:
            observation, info = env.reset()


# An episode


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
@pytest.mark.parametrize("options", [{"action_space": "full"}, {"action_space": "topk", "top_k": 1000}], ids=str)
def test_expert_typing_the_canonical_solution_is_paid_in_full(
    make: Any, loaded: lm.LoadedModel, task: CodeTask, options: dict[str, Any]
) -> None:
    env = make(**options)
    _, info = env.reset(options={"task_id": task.task_id})
    assert task.canonical_solution is not None
    _, reward, terminated, truncated, info = type_out(env, info, ids_of(loaded, task.canonical_solution))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["verdict"].passed
    assert info["task_id"] == task.task_id
    assert env.program == task.canonical_program


def test_reward_comes_at_the_end_only_and_counts_tests(make: Any, loaded: lm.LoadedModel) -> None:
    wrong = ids_of(loaded, "    return x\n")  # right for [], [3] and [1, 1] of four tests
    for reward_kind, expected in (("fraction", 0.75), ("all", 0.0)):
        env = make(action_space="full", reward=reward_kind)
        env.reset(options={"task_id": "reverse"})
        rewards = [env.step(np.int64(token))[1] for token in wrong]
        assert rewards == [0.0] * (len(wrong) - 1) + [expected]


def test_cut_off_program_is_graded_all_the_same(make: Any, loaded: lm.LoadedModel) -> None:
    solution = ids_of(loaded, "    return [2 * v for v in x]\n", end=False)
    env = make(action_space="full", max_new_tokens=len(solution))
    _, info = env.reset(options={"task_id": "double"})
    _, reward, terminated, truncated, info = type_out(env, info, solution)
    assert (reward, terminated, truncated) == (1.0, False, True)
    assert info["verdict"].passed


def test_end_token_on_the_last_of_the_budget_terminates(make: Any, loaded: lm.LoadedModel) -> None:
    env = make(action_space="full", max_new_tokens=1)
    env.reset()
    _, reward, terminated, truncated, _ = env.step(np.int64(loaded.tokenizer.eos_token_id))
    assert (reward, terminated, truncated) == (0.0, True, False)


def test_latents_and_pauses_do_not_reach_the_judge(make: Any, loaded: lm.LoadedModel) -> None:
    env = make(action_space="full")
    _, info = env.reset(options={"task_id": "double"})
    latents = lm.latent_ids(loaded.tokenizer)
    ids = [latents[2], *ids_of(loaded, "    return [2 *", end=False), latents[0], lm.pause_id(loaded.tokenizer)]
    _, reward, *_ = type_out(env, info, ids + ids_of(loaded, " v for v in x]\n"))
    assert reward == 1.0
    assert env.completion == "<|z2|>    return [2 *<|z0|><|pause|> v for v in x]\n"
    assert env.program == DOUBLE.canonical_program


def test_candidates_are_the_models_likeliest_legal_tokens(make: Any) -> None:
    top, full = make(top_k=5), make(action_space="full")
    (_, few), (_, every) = (env.reset(options={"task_id": "double"}) for env in (top, full))
    for _ in range(10):
        logp = np.where(every["action_mask"], every["logprobs"], -np.inf)
        np.testing.assert_array_equal(few["candidates"], np.argsort(-logp, kind="stable")[:5])
        np.testing.assert_array_equal(few["logprobs"], np.sort(logp)[::-1][:5])
        np.testing.assert_allclose(np.exp(every["logprobs"]).sum(), 1.0, rtol=1e-5)
        *_, every = full.step(few["candidates"][3])
        *_, few = top.step(np.int64(3))


def test_stepping_agrees_with_one_full_pass(make: Any, loaded: lm.LoadedModel) -> None:
    env = make(action_space="full")
    _, info = env.reset(options={"task_id": "reverse"})
    ids = ids_of(loaded, "    return sorted(x)[::-1]\n", end=False)
    stepped = []
    for token in ids:
        stepped.append(info["logprobs"][token])
        *_, info = env.step(np.int64(token))
    prompt = loaded.tokenizer.encode(REVERSE.prompt, add_special_tokens=False)
    logp_BT, _ = lm.completion_logprobs(loaded.model, [prompt], [ids])
    np.testing.assert_allclose(stepped, logp_BT[0].detach(), rtol=1e-4, atol=1e-5)


def test_illegal_action_writes_nothing_and_costs_a_token(make: Any, loaded: lm.LoadedModel) -> None:
    env = make(action_space="full", max_new_tokens=3)
    before, info = env.reset(options={"task_id": "double"})
    padding = loaded.tokenizer.pad_token_id
    assert info["action_mask"][padding] == 0
    for action in (padding, 10_000, -1):
        observation, reward, terminated, truncated, info = env.step(np.int64(action))
        assert info["illegal_action"]
        assert info["duration"] == {"tokens": 1}
        assert env.program == DOUBLE.prompt
        np.testing.assert_array_equal(observation, before)
    assert (reward, terminated, truncated) == (0.0, False, True)


def test_mask_hides_padding_and_keeps_end_latents_and_pause(make: Any, loaded: lm.LoadedModel) -> None:
    env = make(action_space="full")
    env.reset()
    tokenizer = loaded.tokenizer
    mask = env.action_masks()
    assert np.flatnonzero(~mask).tolist() == [tokenizer.pad_token_id]
    assert mask[[tokenizer.eos_token_id, lm.pause_id(tokenizer), *lm.latent_ids(tokenizer)]].all()


def test_token_observation_is_prompt_program_padding(make: Any, loaded: lm.LoadedModel) -> None:
    env = make(observation="tokens", action_space="full", max_new_tokens=8)
    env.reset(options={"task_id": "double"})
    token = loaded.tokenizer.encode("    ")[0]
    observation, *_ = env.step(np.int64(token))
    prompt = loaded.tokenizer.encode(DOUBLE.prompt)
    longest = len(loaded.tokenizer.encode(REVERSE.prompt))
    padding = [loaded.tokenizer.pad_token_id] * (longest + 8 - len(prompt) - 1)
    assert observation.tolist() == [*prompt, token, *padding]


def test_render_shows_program_and_tests(make: Any, loaded: lm.LoadedModel) -> None:
    env = make(action_space="full", render_mode="ansi")
    _, info = env.reset(options={"task_id": "double"})
    assert env.render() == "# double: 0 of 192 tokens\ndef f(x):\n\n"
    ids = ids_of(loaded, "    return x\n")
    type_out(env, info, ids)
    head, body = env.render().split("\n", 1)
    assert head == f"# double: {len(ids)} of 192 tokens, 1 of 3 tests passed (wrong_answer)"
    assert body == "def f(x):\n    return x\n\n"


# Choosing and refusing


def test_default_tasks_are_those_for_rl(make: Any) -> None:
    assert make(tasks="idioms").task_ids == [task.task_id for task in load_tasks("idioms", split="rl")]


def test_tasks_of_a_file(make: Any, loaded: lm.LoadedModel, tmp_path: Path) -> None:
    record = {"task_id": "one", "prompt": "def g(a, b):\n", "entry_point": "g", "inputs": [[1, 2]], "outputs": [3]}
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(record) + "\n")
    env = make(tasks=f"jsonl:{file}", action_space="full")
    _, info = env.reset()
    assert type_out(env, info, ids_of(loaded, "    return a + b\n"))[1] == 1.0


def test_random_tasks_cover_all_of_them(make: Any) -> None:
    env = make()
    env.reset(seed=0)
    assert {env.reset()[1]["task_id"] for _ in range(20)} == {"double", "reverse"}


def test_unknown_task_names_the_way_out(make: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"'dubble'.*Did you mean 'double'.*holds 2.*task_ids"):
        make().reset(options={"task_id": "dubble"})


def test_unknown_reset_option_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"'task'.*'task_id'"):
        make().reset(options={"task": "double"})


def test_step_outside_an_episode_asks_for_reset(make: Any, loaded: lm.LoadedModel) -> None:
    env = make(action_space="full")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset()
    env.step(np.int64(loaded.tokenizer.eos_token_id))
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_space": "top-k"}, "'topk', 'full'"),
        ({"observation": "text"}, "'hidden', 'tokens', 'dict'"),
        ({"reward": "some"}, "'fraction', 'all'"),
        ({"render_mode": "human"}, "None or 'ansi'"),
        ({"top_k": 0}, "top_k=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"tasks": []}, "holds no task"),
        ({"max_new_tokens": 600}, "'reverse'.*positions"),
    ],
)
def test_wrong_options_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_model_without_room_for_its_tokenizer_is_refused(loaded: lm.LoadedModel) -> None:
    model = lm.tiny_llama(loaded.tokenizer, hidden=16, layers=1, heads=2, seed=0)
    model.resize_token_embeddings(100)
    with pytest.raises(ModelError, match="model embeds 100"):
        TokenCodeEnv(lm.LoadedModel(model, loaded.tokenizer), TASKS)


def judge_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ra3gym-judge")}


def test_close_ends_the_judge_twice_over_and_before_any_step(make: Any) -> None:
    before = judge_threads()
    env = make(max_new_tokens=1)
    env.close()
    env.reset()
    env.step(np.int64(0))
    assert judge_threads() != before
    env.close()
    env.close()
    assert judge_threads() == before


# In use


def test_it_works_with_no_arguments() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID)
        check_env(env.unwrapped)
    rewards = []
    for seed in range(8):
        _, info = env.reset(seed=seed)
        over = False
        while not over:  # the model's own greedy choice
            _, reward, terminated, truncated, info = env.step(int(info["logprobs"].argmax()))
            over = terminated or truncated
        rewards.append(reward)
    assert max(rewards) > 0
    env.close()


@pytest.mark.parametrize(("algorithm", "options"), [(PPO, {}), (MaskablePPO, {"action_space": "full"})])
def test_stable_baselines3_trains_on_it(make: Any, algorithm: Any, options: dict[str, Any]) -> None:
    env = make(max_new_tokens=8, **options)
    model = algorithm("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    before = model.policy.state_dict()["action_net.weight"].clone()
    model.learn(64)
    assert model.num_timesteps == 64
    assert not torch.equal(before, model.policy.state_dict()["action_net.weight"])


def test_tianshou_collects_from_it_and_masks(make: Any, loaded: lm.LoadedModel) -> None:
    model = lm.tiny_llama(loaded.tokenizer, hidden=16, layers=1, heads=2, seed=0)
    model.resize_token_embeddings(1000)  # two thirds of the actions are ids without a token, and illegal
    options = {"model": lm.LoadedModel(model.eval(), loaded.tokenizer), "observation": "dict", "action_space": "full"}
    envs = DummyVectorEnv([lambda: make(max_new_tokens=6, **options)] * 2)
    (space, _) = envs.get_env_attr("action_space")
    policy = DiscreteQLearningPolicy(model=Net(state_shape=(16,), action_shape=space.n), action_space=space)
    policy.set_eps_training(1.0)
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3))
    buffer = VectorReplayBuffer(64, 2)
    collector = Collector[CollectStats](algorithm, envs, buffer, exploration_noise=True)
    collector.reset()
    collector.collect(n_step=40)
    assert len(buffer) == 40
    assert not buffer.info.illegal_action.any()


def test_vectors_of_it_step_together(tiny_model_folder: Path) -> None:
    envs = gym.make_vec(
        ID, num_envs=2, vectorization_mode="sync", model=str(tiny_model_folder), max_new_tokens=3, top_k=4
    )
    observations, info = envs.reset(seed=0)
    assert observations.shape == (2, 16)
    assert info["candidates"].shape == (2, 4)
    for _ in range(3):
        _, _, terminated, truncated, info = envs.step(np.zeros(2, dtype=np.int64))
    assert (terminated | truncated).any()
    assert all(verdict.status for verdict in info["verdict"][info["_verdict"]])
    envs.close()


def test_a_deep_copy_shares_the_weights_and_no_state() -> None:
    """Weights with gradients, wide enough to be packed."""
    tokenizer = lm.load("embedded").tokenizer
    loaded = lm.LoadedModel(lm.tiny_llama(tokenizer, hidden=256, layers=1, tie=False, seed=0), tokenizer)
    assert all(weight.requires_grad for weight in loaded.model.parameters())
    env = TokenCodeEnv(loaded, [DOUBLE], max_new_tokens=4)
    env.reset(seed=0)
    env.step(np.int64(0))
    again = copy.deepcopy(env)
    assert again.problem.loaded.model is loaded.model
    written = env.program
    env.step(np.int64(1))
    assert again.program == written != env.program
    again.step(np.int64(1))
    assert again.program == env.program
    env.close()
    again.close()


def test_a_task_goes_by_its_number() -> None:
    env = TokenCodeEnv("embedded", [replace(DOUBLE, task_id=f"own/{number}") for number in range(3)])
    for given in (2, "2", "own/2"):
        assert env.reset(options={"task_id": given})[1]["task_id"] == "own/2"
    with pytest.raises(UnknownNameError, match="unknown task '7'"):
        env.reset(options={"task_id": 7})
