"""From a sampled text to the completion that is graded behind the task's prompt."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ra3gym.lm import strip_latents
from ra3gym.tasks import CodeTask
from ra3gym.tasks.answers import cut_completion

AnswerReader = Callable[[CodeTask, str], str]
"""From a task and a sampled text, latents included, to the completion."""


def without_latents(task: CodeTask, text: str) -> str:
    """All of the text but its latents: for models that end a program themselves."""
    return strip_latents(text)


def answer_reader(tokenizer: Any) -> AnswerReader:
    """A reader for base models, which go on after the program, and for tokenizers with markers of their own.

    Latents are taken out. The text ends at the first special token of another kind (a chat marker, say), and where
    the entry function ends (`cut_completion`).
    """
    special = {str(added) for added in tokenizer.added_tokens_decoder.values() if added.special}
    ends = [re.escape(token) for token in special | set(tokenizer.all_special_tokens) if strip_latents(token)]
    first_end = re.compile("|".join(ends) or r"\Z")

    def completion_of(task: CodeTask, text: str) -> str:
        return cut_completion(task, strip_latents(first_end.split(text, maxsplit=1)[0]))

    return completion_of
