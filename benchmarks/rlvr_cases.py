"""The cases of `rlvr.py`, the same for every system: models, prompts, rewards, and the timing of steps.

Each system runs in a new process of its own. A `Pacer` connects it with the script: a step begins when the script says
so and is timed until the system says `done`, so that two systems can take turns.
"""

from __future__ import annotations

import inspect
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ra3gym import lm
from ra3gym.lm.tokenizer import decode_completion
from ra3gym.tasks import load_tasks
from ra3gym.verify import Judge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reward = Callable[[Sequence[str], Sequence[Sequence[int]]], list[float]]
"""From prompts (one per row) and the completions' token ids to one reward per row."""


@dataclass(frozen=True)
class Case:
    """The same work for every system: P prompts a step, G completions of each, one update of all weights."""

    name: str
    model: str
    """Folder of a saved model, or "embedded"."""
    prompts: tuple[tuple[str, ...], ...]
    """P prompts for each step, warm-up included."""
    group_size: int
    """G."""
    new_tokens: int
    """Longest completion."""
    full_length: bool
    """The end token is never sampled, so every completion has `new_tokens` tokens."""
    learning_rate: float = 1e-6
    """A small value, so that lengths do not change while two systems are compared."""
    judge: bool = False
    """Unit tests decide the reward, instead of a function of the tokens."""
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    tokens_per_forward: int | None = None
    """Tokens of our training pass; `None` for the default."""

    @property
    def rows(self) -> int:
        """R = P x G."""
        return len(self.prompts[0]) * self.group_size


BETAS, MAX_GRAD_NORM = (0.9, 0.95), 1.0
"""AdamW's betas, and the norm that gradients are clipped to: the same in every system."""


# --- Models and prompts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes of a random Llama and of its step."""

    hidden: int = 256
    layers: int = 4
    vocabulary: int = 4096
    prompt_tokens: int = 64
    new_tokens: int = 64
    prompts: int = 8
    group_size: int = 8


QUICK = Shape(hidden=32, layers=2, vocabulary=64, prompt_tokens=8, new_tokens=8, prompts=2, group_size=4)


def tiny_case(folder: Path, steps: int, seed: int, shape: Shape, **others: Any) -> Case:
    """Return the case of a random Llama over a vocabulary of words; prompts are random words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<end>", "<pad>", *(f"w{number}" for number in range(2, shape.vocabulary))]
    bare = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    bare.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<end>", eos_token="<end>", pad_token="<pad>", padding_side="left"
    )
    model = lm.tiny_llama(tokenizer, hidden=shape.hidden, layers=shape.layers, heads=4, seed=seed)
    lm.save(model, tokenizer, folder)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(2, len(words), (steps, shape.prompts, shape.prompt_tokens), generator=generator).tolist()
    prompts = tuple(tuple(" ".join(words[i] for i in ids) for ids in step) for step in drawn)
    return Case("tiny", str(folder), prompts, shape.group_size, shape.new_tokens, full_length=True, **others)


def embedded_case(steps: int, seed: int, **others: Any) -> Case:
    """Return the case of the checkpoint in the package on the idiom tasks, with its natural lengths."""
    tasks = load_tasks("idioms")
    order = torch.randperm(len(tasks), generator=torch.Generator().manual_seed(seed)).tolist()
    prompts = _cycled([tasks[i].prompt for i in order], steps, 16)
    return Case("embedded", "embedded", prompts, group_size=8, new_tokens=128, full_length=False, **others)


def smollm2_case(source: Path, folder: Path, steps: int, **others: Any) -> Case:
    """Return the case of SmolLM2-135M, or of any model that `lm.load` reads, on Python source; prompts of 96 tokens."""
    loaded = lm.load(source)
    lm.save(loaded.model, loaded.tokenizer, folder)  # both systems load the same plain folder, a GGUF file or not
    pieces = itertools.islice(_pieces(loaded.tokenizer, inspect.getsource(statistics), 96), 2 * steps)
    prompts = _cycled(list(pieces), steps, 2)
    return Case("smollm2", str(folder), prompts, group_size=4, new_tokens=48, full_length=True, **others)


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> Iterator[str]:
    """Return pieces of `text` of `length` tokens each."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    for start in range(0, len(ids) - length, length):
        piece = tokenizer.decode(ids[start : start + length], clean_up_tokenization_spaces=False)
        if len(tokenizer(piece)["input_ids"]) == length:
            yield piece


def _cycled(prompts: Sequence[str], steps: int, per_step: int) -> tuple[tuple[str, ...], ...]:
    endless = itertools.cycle(prompts)
    return tuple(tuple(itertools.islice(endless, per_step)) for _ in range(steps))


# --- Rewards ----------------------------------------------------------------------------------------------------------


def even_share(prompts: Sequence[str], completions: Sequence[Sequence[int]]) -> list[float]:
    """Return the share of tokens with an even id: it is cheap and differs within nearly every group."""
    return [sum(1 - token % 2 for token in tokens) / max(1, len(tokens)) for tokens in completions]


@contextmanager
def reward_of(case: Case, tokenizer: PreTrainedTokenizerBase) -> Iterator[Reward]:
    """Yield the reward function of a case; the judge's processes end with the context."""
    if not case.judge:
        yield even_share
        return
    tasks = {task.prompt: task for task in load_tasks("idioms")}
    with Judge(workers=1, cache_size=0) as judge:

        def passed(prompts: Sequence[str], completions: Sequence[Sequence[int]]) -> list[float]:
            pairs = []
            for prompt, ids in zip(prompts, completions, strict=True):
                written = list(ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids)
                text = decode_completion(tokenizer, lm.encode_prompt(tokenizer, prompt), written)
                pairs.append((tasks[prompt], prompt + lm.strip_latents(text)))
            return [float(verdict.passed) for verdict in judge.grade(pairs)]

        yield passed


# --- Pace, clock and memory -------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What a system reports of one step."""

    rows: int = 0
    tokens: int = 0
    """Completion tokens, end tokens included."""
    grad_norm: float = 0.0
    """Before clipping; 0 if no row had an advantage."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds spent in parts of the step, if the system reports them."""

    @contextmanager
    def phase(self, name: str, device: str) -> Iterator[None]:
        """Add the time that passes inside to a phase."""
        started = now(device)
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + now(device) - started


def now(device: str) -> float:
    """Return the time in seconds, after the device has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


class Pacer:
    """A system's end of the connection.

    It calls `ready` once its model is loaded and `done` after each step; both return when the next step may begin.
    """

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection = connection
        self._device = device
        self._started = self._cpu_started = 0.0

    def ready(self) -> None:
        """Report the memory that the process holds before its first step, and wait for that step to begin."""
        _forget_peak(self._device)
        self._connection.send({"memory_mb": _memory_mb(self._device)["now"]})
        self._wait()

    def done(self, work: Work) -> None:
        """Report a step, and wait for the next to begin; after the last one, for the permission to end."""
        seconds = now(self._device) - self._started
        cpu_seconds = _cpu_seconds() - self._cpu_started
        self._connection.send(
            {"seconds": seconds, "cpu_seconds": cpu_seconds}
            | {"peak_mb": _memory_mb(self._device)["peak"]}
            | {"rows": work.rows, "tokens": work.tokens, "grad_norm": work.grad_norm, "phases": work.phases}
        )
        self._wait()

    def _wait(self) -> None:
        self._connection.recv()
        self._cpu_started = _cpu_seconds()
        self._started = now(self._device)


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children."""
    below = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(process.cpu_times()[:4]) for process in below)


def _memory_mb(device: str) -> dict[str, float | None]:
    """Return the memory that this process holds (on a GPU: its tensors), and the peak since `_forget_peak`.

    Not `getrusage`: its peak begins with the memory of the process that this one was started from.
    """
    if device.startswith("cuda"):
        return {
            "now": torch.cuda.memory_allocated() / 2**20,
            "peak": torch.cuda.max_memory_allocated() / 2**20,
        }
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    except OSError:  # only Linux says
        return {"now": None, "peak": None}
    return {name: int(status[key].split()[0]) / 2**10 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def _forget_peak(device: str) -> None:
    """Forget the peak of memory, so that loading the model does not count."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # only Linux can; elsewhere no peak is reported
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def set_threads(threads: int) -> None:
    """Set the threads of this process and of the processes that it starts."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(threads)
