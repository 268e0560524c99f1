"""A small byte-level BPE tokenizer for Python code, and the special tokens of latents.

Every text encodes without unknown tokens and decodes to itself. A line break is always a token of its own, so that
lines can be encoded one by one: `encode(a) + encode(b) == encode(a + b)` whenever `a` ends with a line break.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ra3gym.errors import ConfigError, ModelError
from ra3gym.tasks.answers import PAUSE_TOKEN, latent_token

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"

# What one token may span, in order of preference: a line break; the indent of a line; a word, a digit or a run of
# punctuation, each with the space before it; any other white space.
_PIECES = r"\n|(?<![^\n])[ \t]+| ?[^\W\d]\w*| ?\d| ?[^\s\w]+|[^\S\n]"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`.

    Args:
        texts: the corpus; a few thousand programs are enough for a vocabulary of 512.
        vocab_size: an upper bound on the number of tokens, the 256 bytes and two special tokens included. BPE stops
            earlier when no pair of tokens is left to merge.

    Returns:
        A tokenizer whose end (and begin) token is `<|endoftext|>` and whose padding token is `<|pad|>`. It does not add
        them by itself. `decode(encode(text)) == text` for every text.

    Raises:
        ConfigError: `vocab_size` has no room for the bytes and the special tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [END_TOKEN, PAD_TOKEN]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special):
        raise ConfigError(f"vocab_size={vocab_size} is too small; use at least {len(alphabet) + len(special)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a prompt that a model will continue, with the begin tokens of the tokenizer's own convention.

    Llama 3 starts every text with a begin token; the tokenizers of this package add none. Tokens that a tokenizer
    appends (an end token, for example) are left out. An empty text gives the begin token, if there is one, so that a
    model has something to read.
    """
    ids: list[int] = tokenizer.encode(text)
    if not text:
        begin = tokenizer.bos_token_id
        return [] if begin is None else [int(begin)]
    plain: list[int] = tokenizer.encode(text, add_special_tokens=False)
    start = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
    return ids[:start] + plain


def decode_completion(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """Decode `ids` as the continuation of `prompt_ids`, special tokens included.

    A tokenizer may treat the start of a text specially (many drop a leading space), so both are decoded together and
    the prompt is cut off.
    """

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode([*prompt_ids, *ids]).removeprefix(decode(prompt_ids))


def latent_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of the latents 0, 1, ... that `tokenizer` knows; empty when it knows none."""
    added = tokenizer.get_added_vocab()
    ids: list[int] = []
    while latent_token(len(ids)) in added:
        ids.append(added[latent_token(len(ids))])
    return ids


def pause_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token id of `<|pause|>`; raises `ModelError` when the tokenizer lacks it."""
    added = tokenizer.get_added_vocab()
    if PAUSE_TOKEN not in added:
        raise ModelError(f"the tokenizer has no {PAUSE_TOKEN}; add it with add_latents(..., pause=True)")
    return int(added[PAUSE_TOKEN])


def add_latents(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    num_latents: int,
    *,
    pause: bool = False,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Add the latents `<|z0|>` ... to `tokenizer`, and rows for them to the embeddings of `model`.

    New rows are drawn from a normal with the mean and standard deviation of the old rows, per dimension. (With the
    default of transformers, new rows at the mean, latents are nearly identical.) Existing latents keep their rows, so
    that a second call changes nothing.

    Args:
        model: resized in place; `None` for the tokenizer alone.
        tokenizer: changed in place.
        num_latents: the number K of latents after this call.
        pause: also add `<|pause|>`, the dummy token of the pause control.
        generator: the source of the noise, on the CPU; the global one when `None`.

    Returns:
        The token ids of the K latents.

    Raises:
        ConfigError: `num_latents` is negative or below the number of existing latents.
    """
    known = len(latent_ids(tokenizer))
    if num_latents < known:
        raise ConfigError(f"num_latents={num_latents}, but the tokenizer has {known} latents already")
    size_before = len(tokenizer)
    names = [latent_token(k) for k in range(known, num_latents)] + [PAUSE_TOKEN] * pause
    tokenizer.add_tokens(names, special_tokens=True)
    if model is not None:
        _grow_embeddings(model, size_before, len(tokenizer), generator)
    return latent_ids(tokenizer)


def _grow_embeddings(model: Any, old_size: int, new_size: int, generator: torch.Generator | None) -> None:
    """Draw rows for the ids `old_size .. new_size - 1` in the input and (if untied) the output embedding."""
    import torch

    if new_size == old_size:
        return
    if new_size > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(new_size, mean_resizing=False)
    weights: list[torch.Tensor] = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for weight_VD in weights[:1] if weights[0] is weights[1] else weights:
            old_VD = weight_VD[:old_size].float()
            noise = torch.randn(new_size - old_size, weight_VD.shape[1], generator=generator).to(weight_VD.device)
            weight_VD[old_size:new_size] = (old_VD.mean(0) + old_VD.std(0) * noise).to(weight_VD.dtype)
