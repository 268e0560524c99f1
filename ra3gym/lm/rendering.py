"""Where the parts of a text lie among its tokens, and where a prompt ends and a completion begins.

A tokenizer may join the end of one part to the beginning of the next: GPT-2's kind joins a line break to the indent
after it. A text that is encoded part by part then has tokens that the model never saw in training. So a text is encoded
as a whole (`render`), and a prompt is cut back to the last place where tokens end whatever follows (`cut_prompt`). The
completion then begins with the text that was cut off (`ForcedText`). This is known as token healing.

Where a prompt ends at such a place already, as with the tokenizers of this package, of Llama 3 and of Qwen after a line
break, its tokens stay as they are and nothing is forced.

Shape letters: see CONTRIBUTING.md (P prompts, R rows, B rows of a call, V vocabulary).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ra3gym.errors import ConfigError, DataError
from ra3gym.lm.tokenizer import decode_completion, encode_prompt

_UNFINISHED = "\ufffd"
"""What the first bytes of a character are decoded to."""

_LINES = ("def f(x):\n", "    if x:\n", "        return g(x)  \n", "\n", "\tx\n", "# y\n", "x = [1]\n")
"""Lines that tokenizers join, if they join any."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as a completion continues it.

    Attributes:
        ids: the tokens up to the last place where a token ends whatever follows.
        forced: the rest of the text, with which the completion must begin; mostly empty.
    """

    ids: list[int]
    forced: str = ""


@dataclass(frozen=True)
class Rendered:
    """A text that was encoded as a whole.

    Attributes:
        ids: the token ids, the tokenizer's own begin tokens included.
        spans: for each part, its tokens: `start` to `stop - 1`. A token belongs to the part in which it begins; begin
            tokens belong to the first part.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class TokenTexts:
    """The text of each token of a tokenizer, as it continues other text. Get one from `token_texts`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        self._anchor: list[int] = tokenizer.encode("x", add_special_tokens=False)
        self._special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self._special |= set(tokenizer.all_special_ids)
        self._compatible: dict[tuple[str, int], Tensor] = {}

    def __getitem__(self, token: int) -> str:
        """Return the text of a token; a part of a character of several bytes becomes "\\ufffd"."""
        if token not in self._texts:
            self._texts[token] = decode_completion(self._tokenizer, self._anchor, [token])
        return self._texts[token]

    def is_special(self, token: int) -> bool:
        """Return whether a token has no text: an end token, a latent, a chat marker."""
        return token in self._special

    def compatible_V(self, forced: str, vocab_size: int) -> Tensor:
        """Return bool `(V,)`, true at tokens that agree with `forced` as the text that must come next.

        A token agrees if its text begins with `forced`, or `forced` begins with its text.
        """
        key = (forced, vocab_size)
        if key not in self._compatible:
            tokens = [token for token in range(min(len(self._tokenizer), vocab_size)) if self._agrees(token, forced)]
            mask_V = torch.zeros(vocab_size, dtype=torch.bool)
            mask_V[torch.tensor(tokens, dtype=torch.int64)] = True
            self._compatible[key] = mask_V
        return self._compatible[key]

    def rest(self, forced: str, token: int) -> str:
        """Return what of `forced` is still to be written after a token that agrees with it."""
        return "" if self.is_special(token) else forced[len(self[token]) :]

    def _agrees(self, token: int, forced: str) -> bool:
        text = self[token]
        return text != "" and not self.is_special(token) and (text.startswith(forced) or forced.startswith(text))


def token_texts(tokenizer: Any) -> TokenTexts:
    """Return the texts of a tokenizer's tokens; the same object until a token is added to the tokenizer."""
    return _token_texts(tokenizer, len(tokenizer))


@lru_cache(maxsize=4)
def _token_texts(tokenizer: Any, num_tokens: int) -> TokenTexts:
    return TokenTexts(tokenizer)


# Whole texts


def render(tokenizer: Any, parts: Sequence[str]) -> Rendered:
    """Encode the text that `parts` make up together, and find the tokens of each part.

    Special tokens may be parts, written as the tokenizer writes them (`<|z0|>`).

    Raises:
        DataError: the tokens do not decode to the text.
    """
    text = "".join(parts)
    begin, ids = _begin_and_ids(tokenizer, text)
    starts = token_starts(tokenizer, ids, text)
    if starts is None:
        ids = _encode_between_special_tokens(tokenizer, text)
        starts = token_starts(tokenizer, ids, text)
    if starts is None:
        decoded = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        place = next((i for i, (one, other) in enumerate(zip(text, decoded, strict=False)) if one != other), 0)
        raise DataError(
            f"the tokenizer does not give a text back: {text[place : place + 40]!r} is decoded to "
            f"{decoded[place : place + 40]!r}; take a tokenizer that keeps white space and knows every character"
        )
    if not parts[0] and not begin:
        begin = encode_prompt(tokenizer, "")
    stops = [len(begin) + bisect_left(starts, stop) for stop in accumulate(map(len, parts))]
    return Rendered((*begin, *ids), tuple(pairwise([0, *stops])))


def token_starts(tokenizer: Any, ids: Sequence[int], text: str) -> list[int] | None:
    """Return at which character of `text` each of its tokens begins; `None` if they do not decode to it.

    Tokens that share a character of several bytes begin at that character. (The offsets of `tokenizers` leave out white
    space at the ends of tokens.)
    """
    texts = token_texts(tokenizer)
    starts: list[int] = []
    position = 0
    unfinished: list[int] = []
    for i, token in enumerate(ids):
        starts.append(position)
        unfinished.append(token)
        if len(unfinished) > 1:
            piece = decode_completion(tokenizer, ids[:1], unfinished)
        else:
            piece = texts[token] if i else decode_completion(tokenizer, [], [token])
        if text.startswith(piece, position):
            position += len(piece)
            unfinished = []
        elif _UNFINISHED not in piece:
            return None
    return starts if position == len(text) else None


def encode_part(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text that continues another one, without special tokens.

    Many tokenizers put a space before every text, which belongs only to the first one.
    """
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if not _adds_space(tokenizer, len(tokenizer)):
        return ids
    line_break: list[int] = tokenizer.encode("\n", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("\n" + text, add_special_tokens=False)
    return whole[len(line_break) :] if whole[: len(line_break)] == line_break else ids


def ends_lines(tokenizer: Any) -> bool:
    """Return whether a line break is always a token of its own, so that lines can be encoded one by one."""
    return _ends_lines(tokenizer, len(tokenizer))


@lru_cache(maxsize=4)
def _ends_lines(tokenizer: Any, num_tokens: int) -> bool:
    texts = token_texts(tokenizer)
    whole: list[int] = tokenizer.encode("".join(_LINES), add_special_tokens=False)
    lines = [token for line in _LINES for token in tokenizer.encode(line, add_special_tokens=False)]
    return whole == lines and all(texts[token] == "\n" for token in range(num_tokens) if "\n" in texts[token])


@lru_cache(maxsize=4)
def _adds_space(tokenizer: Any, num_tokens: int) -> bool:
    """Return whether the tokenizer puts a space before a text."""
    ids: list[int] = tokenizer.encode("x", add_special_tokens=False)
    return "".join(token_texts(tokenizer)[token] for token in ids).startswith(" ")


def _begin_and_ids(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Return the tokenizer's begin tokens, and the token ids of the text."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False) if text else []
    whole = encode_prompt(tokenizer, text)
    return whole[: len(whole) - len(ids)], ids


def _encode_between_special_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text whose special tokens have no space after them, though others would get one."""
    names = [str(added) for added in tokenizer.added_tokens_decoder.values() if added.special]
    special = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else re.compile(r"(?!)")
    ids: list[int] = []
    for piece in filter(None, special.split(text)):
        ids += encode_part(tokenizer, piece) if ids else tokenizer.encode(piece, add_special_tokens=False)
    return ids


# Prompts and what follows them


def cut_prompt(tokenizer: Any, text: str) -> Prompt:
    """Return a prompt as a completion continues it: cut back where its end may be joined to what follows.

    What may follow: code or a comment, indented or not, after a line break; a word after blanks; else a blank or a line
    break.
    """
    if not text or (text.endswith("\n") and ends_lines(tokenizer)):
        return Prompt(encode_prompt(tokenizer, text))
    begin, ids = _begin_and_ids(tokenizer, text)
    count = len(ids)
    for continuation in _continuations(text):
        longer: list[int] = tokenizer.encode(text + continuation, add_special_tokens=False)
        count = next(
            (i for i, (one, other) in enumerate(zip(ids[:count], longer, strict=False)) if one != other), count
        )
    if count == len(ids):
        return Prompt([*begin, *ids])
    starts = token_starts(tokenizer, ids, text)
    if starts is None or len(begin) + count == 0 or _UNFINISHED in text[starts[count] :]:
        return Prompt([*begin, *ids])
    while count and starts[count] == starts[count - 1]:
        count -= 1  # not within a character
    return Prompt([*begin, *ids[:count]], text[starts[count] :])


def _continuations(text: str) -> tuple[str, ...]:
    if text.endswith("\n"):
        return "    x", "\tx", "x", "# x"
    return ("x", "# x") if text[-1].isspace() else (" x", "\n    x", "\nx")


def completion_text(tokenizer: Any, prompt: Prompt, ids: Sequence[int]) -> str:
    """Return the text of a completion, special tokens included, without the text that its prompt forced."""
    return decode_completion(tokenizer, prompt.ids, ids)[len(prompt.forced) :]


@dataclass(frozen=True)
class FirstChoice:
    """Where a completion's decisions begin.

    Attributes:
        column: the first token that is a decision; those before it belong to the prompt.
        allowed_V: bool, the tokens that it is chosen from; all that may be sampled when `None`.
    """

    column: int = 0
    allowed_V: Tensor | None = None


UNFORCED = FirstChoice()
"""Of a completion whose prompt forces nothing."""


@dataclass(frozen=True)
class ForcedText:
    """The texts that the completions of P prompts must begin with.

    A token that leaves forced text unwritten is part of the prompt: it is no decision, and its log-probability counts
    as 0. The token that completes the forced text is a decision among the tokens that agree with the rest of it.

    Attributes:
        texts: for each prompt; empty where nothing is forced.
        vocabulary: the texts of the tokens.
    """

    texts: tuple[str, ...]
    vocabulary: TokenTexts

    @classmethod
    def of(cls, tokenizer: Any, prompts: Sequence[Prompt]) -> ForcedText | None:
        """Return the forced texts of prompts; `None` if there are none."""
        texts = tuple(prompt.forced for prompt in prompts)
        return cls(texts, token_texts(tokenizer)) if any(texts) else None

    def first_choice(self, prompt: int, completion: Sequence[int], vocab_size: int) -> FirstChoice:
        """Return the first decision of a completion of this prompt."""
        rest = self.texts[prompt]
        if not rest:
            return UNFORCED
        for column, token in enumerate(completion):
            after = self.vocabulary.rest(rest, token)
            if not after:
                return FirstChoice(column, self.vocabulary.compatible_V(rest, vocab_size))
            rest = after
        return FirstChoice(len(completion))

    def rows(self, group_size: int) -> ForcedRows:
        """Return what the rows of a batch have to write, `group_size` for each prompt."""
        return ForcedRows(self.vocabulary, [text for text in self.texts for _ in range(group_size)])


class ForcedRows:
    """The forced text that is still to be written in each of R rows."""

    def __init__(self, vocabulary: TokenTexts, rests: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self.rests = list(rests)

    @property
    def waits(self) -> bool:
        """Whether any row has forced text to write."""
        return any(self.rests)

    def allowed_BV(self, rows: Sequence[int], allowed_V: Tensor) -> Tensor:
        """Return the tokens that these rows may continue with: bool, of those in `allowed_V`, on its device.

        Raises:
            ConfigError: none of them agrees with a row's forced text.
        """
        allowed_BV = allowed_V.repeat(len(rows), 1)
        for b, row in enumerate(rows):
            if self.rests[row]:
                allowed_BV[b] &= self._vocabulary.compatible_V(self.rests[row], len(allowed_V)).to(allowed_V.device)
                if not bool(allowed_BV[b].any()):
                    raise ConfigError(
                        f"no allowed token agrees with {self.rests[row]!r}, the end of the prompt: allow the tokens "
                        "that the tokenizer has there"
                    )
        return allowed_BV

    def write(self, row: int, token: int) -> bool:
        """Note a row's next token; return whether it leaves forced text unwritten."""
        self.rests[row] = self._vocabulary.rest(self.rests[row], token)
        return self.rests[row] != ""
