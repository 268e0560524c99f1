"""Tasks that a model of a few hundred weights can learn: which of two tokens to write first."""

from __future__ import annotations

from typing import Any

import torch

from ra3gym import lm
from ra3gym.agents.rlvr import RLVRConfig
from ra3gym.lm import LoadedModel
from ra3gym.tasks import CodeTask, FunctionTests

PROMPT = "def f(x):\n"
TASKS = [CodeTask(f"bandit/{index}", PROMPT, "f", FunctionTests(((1,),), (1,))) for index in range(4)]

QUICK = RLVRConfig(
    steps=4,
    tasks_per_step=2,
    group_size=4,
    learning_rate=1e-2,
    max_new_tokens=4,
    stop_at_function_end=False,
    checkpoint_every=2,
    min_entropy=0.0,
)


def tiny(seed: int = 0, **shape: Any) -> LoadedModel:
    """A model with random weights that writes a handful of characters, two latents among them."""
    tokenizer = lm.train_tokenizer([PROMPT + "    return ab\n"], vocab_size=264)
    lm.add_latents(None, tokenizer, 2)
    settings = {"hidden": 16, "layers": 1, "heads": 2, "max_length": 64, **shape}
    return LoadedModel(lm.tiny_llama(tokenizer, seed=seed, **settings), tokenizer)


def writes_an_a(task: CodeTask, text: str) -> float:
    """The share of the first four characters that are an "a"."""
    return text[:4].count("a") / 4


def allowed(loaded: LoadedModel, *pieces: str) -> Any:
    """The mask of these tokens and the end."""
    mask_V = torch.zeros(len(loaded.tokenizer), dtype=torch.bool)
    ids = [loaded.tokenizer.convert_tokens_to_ids(piece) for piece in pieces]
    mask_V[[*ids, loaded.tokenizer.eos_token_id]] = True
    return mask_V
