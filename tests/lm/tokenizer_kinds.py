"""Small tokenizers of the kinds that real checkpoints have, trained here on a few programs."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ra3gym.agents.mid_training.m_step import MStepConfig, distill
from ra3gym.lm import LoadedModel, load, tiny_llama, train_tokenizer
from ra3gym.lm.model import EMBEDDED

PROMPTS = (
    'from typing import List\n\n\ndef below(xs: List[int], t: int) -> bool:\n    """ Are all numbers below t?\n'
    '    >>> below([1, 2], 100)\n    True\n    """\n',
    "def double(x):\n",
    "def double(x):\n    # twice\n",
    'def find(xs, t):\n    """\n    Return where t is.\n    """\n\n',
)
SOLUTIONS = (
    "    for x in xs:\n        if x >= t:\n            return False\n    return True\n",
    "    return 2 * x\n",
    "    y = x\n\n    return x + y\n",
    "    for i, x in enumerate(xs):\n        if x == t:\n            return i\n    return -1\n",
)
PROGRAMS = [prompt + solution for prompt, solution in zip(PROMPTS, SOLUTIONS, strict=True)]
TEXTS = [*PROGRAMS, "class A:\n\tdef f(self):\n\t\treturn 'a b'  # é, 日本\n\n\n" + "x = [1, 2, 30]\n" * 3] * 8

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

KINDS = ("gpt2", "llama3", "qwen", "metaspace", "metaspace_prefix", "llama2", "words", "trained", "embedded")
"""`metaspace` are sentencepiece's, without and with a space before the text; `llama2` has it as a normalizer."""

NATURAL = ("llama3", "qwen", "metaspace", "metaspace_prefix", "llama2", "words", "trained", "embedded")
"""Those whose tokens end with the prompt's last line break, whatever follows."""


@cache
def make_tokenizer(kind: str) -> Any:
    """A tokenizer of this kind, with an end token; do not change it."""
    if kind == "embedded":
        return load(EMBEDDED).tokenizer
    if kind == "trained":
        return train_tokenizer(TEXTS, vocab_size=400)
    if kind in ("gpt2", "llama3", "qwen"):
        return _byte_level({"gpt2": GPT2, "llama3": LLAMA3, "qwen": QWEN}[kind])
    if kind == "words":
        return _words()
    return _sentencepiece(kind)


@cache
def knows_the_programs(kind: str) -> LoadedModel:
    """A model that knows `PROGRAMS` by heart, as whole texts; do not change it."""
    tokenizer = make_tokenizer(kind)
    model = tiny_llama(tokenizer, hidden=48, layers=2, heads=4, max_length=256, seed=0)
    documents = [[*tokenizer.encode(program), tokenizer.eos_token_id] for program in PROGRAMS]
    distill(model, documents * 8, MStepConfig(tokens=40_000, learning_rate=1e-2, tokens_per_batch=512), seed=0)
    return LoadedModel(model.eval(), tokenizer)


def _wrapped(whole: Tokenizer) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, clean_up_tokenization_spaces=False)
    tokenizer.add_special_tokens({"eos_token": AddedToken("<|endoftext|>", special=True, normalized=False)})
    return tokenizer


def _byte_level(pattern: str) -> Any:
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    whole.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    whole.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return _wrapped(whole)


def _sentencepiece(kind: str) -> Any:
    whole = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    scheme = "first" if kind == "metaspace_prefix" else "never"
    if kind == "llama2":
        whole.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = [] if kind == "metaspace" else [decoders.Strip(" ", 1, 0)]
    whole.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    # Line breaks are bytes, as in the vocabularies of Llama 1 and 2.
    bytes_ = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = [line for text in TEXTS for line in text.split("\n")]
    trainer = trainers.BpeTrainer(vocab_size=345, special_tokens=bytes_, show_progress=False)
    whole.train_from_iterator(lines, trainer)
    return _wrapped(_without_added_bytes(whole.to_str()))


def _without_added_bytes(state: str) -> Tokenizer:
    """The bytes are ordinary tokens: as added ones they would be read in the text."""
    data = json.loads(state)
    data["added_tokens"] = [added for added in data["added_tokens"] if added["content"] == "<unk>"]
    return Tokenizer.from_str(json.dumps(data))


def _words() -> Any:
    """Words, numbers, signs and single white spaces; a text is its tokens, one after the other."""
    pattern = r"\w+|[^\w\s]|\s"
    whole = Tokenizer(models.WordLevel(unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    whole.decoder = decoders.Fuse()
    whole.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(vocab_size=2000, special_tokens=["<unk>"], show_progress=False)
    )
    return _wrapped(whole)
