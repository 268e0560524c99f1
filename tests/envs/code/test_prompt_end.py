"""Episodes begin where the tokenizer itself would end a token; the tokenizer joins line breaks to indents here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ra3gym import lm
from ra3gym.envs.code.latent import LatentCodeEnv
from ra3gym.envs.code.rationale import RationaleCodeEnv
from ra3gym.envs.code.token import TokenCodeEnv, TokenCodeVectorEnv
from ra3gym.lm.rendering import cut_prompt
from ra3gym.tasks import CodeTask, FunctionTests
from ra3gym.testing import check_environment
from tests.lm.tokenizer_kinds import PROMPTS, SOLUTIONS, knows_the_programs, make_tokenizer

TASKS = [
    CodeTask(str(n), prompt, "below", FunctionTests((([1, 2], 100),), (True,))) for n, prompt in enumerate(PROMPTS)
]


@pytest.fixture(scope="module")
def loaded() -> lm.LoadedModel:
    return knows_the_programs("gpt2")


@pytest.mark.parametrize("action_space", ["topk", "full"])
@pytest.mark.parametrize("number", range(len(TASKS)))
def test_token_code(loaded: lm.LoadedModel, action_space: Any, number: int) -> None:
    """The likeliest tokens are the program that the model knows."""
    env = TokenCodeEnv(model=loaded, tasks=TASKS, action_space=action_space, top_k=8, observation="tokens")
    observation, info = env.reset(seed=0, options={"task_id": str(number)})
    prompt = cut_prompt(loaded.tokenizer, PROMPTS[number])
    assert observation[: len(prompt.ids)].tolist() == prompt.ids
    tokens = info["candidates"][info["action_mask"].astype(bool)]
    assert len(tokens)
    assert all(loaded.tokenizer.decode([token]).startswith("\n") for token in tokens)
    if action_space == "full":
        forbidden = int(np.flatnonzero(info["action_mask"] == 0)[0])
        assert env.step(forbidden)[-1]["illegal_action"]
        env.reset(seed=0, options={"task_id": str(number)})
    ended = False
    while not ended:
        action = int(np.where(info["action_mask"], info["logprobs"], -np.inf).argmax())
        observation, _, ended, truncated, info = env.step(action)
        assert not truncated
    ids = observation.tolist()
    text = loaded.tokenizer.decode(ids[: ids.index(loaded.tokenizer.eos_token_id)])
    assert text == PROMPTS[number] + SOLUTIONS[number]
    assert (info["verdict"].status == "passed") == (number == 0)
    if action_space == "full":
        assert info["action_mask"].sum() > 100
    env.close()


def test_token_code_meets_the_contract(loaded: lm.LoadedModel) -> None:
    options: dict[str, Any] = {"model": loaded, "tasks": TASKS, "max_new_tokens": 6, "top_k": 300}
    check_environment(lambda: TokenCodeEnv(**options))
    vector = TokenCodeVectorEnv(num_envs=3, **options)
    _, infos = vector.reset(seed=1)
    for _ in range(14):
        likeliest = np.where(infos["action_mask"], infos["logprobs"], -np.inf).argmax(1)
        *_, infos = vector.step(likeliest)
        assert not np.any(infos.get("illegal_action", False))
    vector.close()


@pytest.mark.parametrize("number", range(len(TASKS)))
def test_rationale_code(loaded: lm.LoadedModel, number: int) -> None:
    env = RationaleCodeEnv(model=loaded, tasks=TASKS, decoder="greedy", observation="tokens", proposals=2)
    observation, _ = env.reset(seed=0, options={"task_id": str(number)})
    ended = False
    while not ended:
        observation, _, ended, truncated, _ = env.step(0)
        assert not truncated
    ids = observation.tolist()
    text = loaded.tokenizer.decode(ids[: ids.index(loaded.tokenizer.eos_token_id)])
    assert text == PROMPTS[number] + SOLUTIONS[number]
    env.close()


def test_a_latent_follows_the_whole_prompt() -> None:
    tokenizer = type(make_tokenizer("gpt2"))(tokenizer_object=make_tokenizer("gpt2").backend_tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    lm.add_latents(None, tokenizer, 2)
    model = lm.tiny_llama(tokenizer, hidden=16, layers=1, heads=2, seed=0).eval()
    env = LatentCodeEnv(model=lm.LoadedModel(model, tokenizer), tasks=TASKS, observation="tokens", max_new_tokens=8)
    observation, _ = env.reset(seed=0, options={"task_id": "1"})
    whole = lm.encode_prompt(tokenizer, PROMPTS[1])
    assert observation[: len(whole)].tolist() == whole
    observation, *_ = env.step(1)
    assert observation[len(whole)] == lm.latent_ids(tokenizer)[1]
    env.close()
