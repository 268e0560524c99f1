"""Fixtures of several test folders: a tiny model with latents, and a tiny corpus of the embedded domain."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ra3gym import lm
from ra3gym.tasks import ExpertTrace
from ra3gym.tasks.idioms import IdiomsDomain

PROGRAMS = (
    "# double the even numbers\ndef f(x):\n    y = [v for v in x if v % 2 == 0]\n    return [2 * v for v in y]\n",
    "# sort, largest first\ndef f(x):\n    x = sorted(x)\n    return x[::-1]\n",
    "# running sum\ndef f(x):\n    total = 0\n    out = []\n    for v in x:\n        total += v\n"
    "        out.append(total)\n    return out\n",
)


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Shells start jobs in the background like this. The tests' processes would inherit it, and hear no Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialized Llama of 16 dimensions with four latents and a pause token; never trained."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = lm.train_tokenizer(PROGRAMS, vocab_size=300)
    lm.add_latents(None, tokenizer, 4, pause=True)
    model = lm.tiny_llama(tokenizer, hidden=16, layers=2, heads=2, max_length=512, seed=0)
    lm.save(model, tokenizer, folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """Small models are slower with two threads on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def traces() -> list[ExpertTrace]:
    """Half of them documented; three idioms on lists each."""
    domain = IdiomsDomain(length=3, difficulty="easy", documented=0.5, num_compositions=30, num_held_out=1)
    return domain.traces(120)


@pytest.fixture(scope="session")
def tokenizer(traces: list[ExpertTrace]) -> Any:
    """32 latents and a pause token."""
    tokenizer = lm.train_tokenizer((trace.task.canonical_program for trace in traces), vocab_size=400)
    lm.add_latents(None, tokenizer, 32, pause=True)
    return tokenizer
