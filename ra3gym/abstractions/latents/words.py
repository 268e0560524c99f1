"""The prompt words that call for each latent of a model, in a file of the model's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ra3gym.errors import DataError
from ra3gym.files import write_json
from ra3gym.lm.model import EMBEDDED

LATENT_WORDS_FILE = "latents.json"


def save_latent_words(folder: Path, names: Sequence[Sequence[str]]) -> None:
    """Write `latents.json` into a model's folder: for each latent, the prompt words that call for it."""
    write_json(folder / LATENT_WORDS_FILE, {"names": [list(words) for words in names]})


def latent_words(model: str) -> tuple[tuple[str, ...], ...]:
    """Return the prompt words of each latent of a model ("embedded" or a folder); empty if its folder lacks them.

    `DataError` when the file is damaged.
    """
    file = (EMBEDDED if model == "embedded" else Path(model).expanduser()) / LATENT_WORDS_FILE
    if not file.is_file():
        return ()
    try:
        return tuple(tuple(map(str, words)) for words in json.loads(file.read_text(encoding="utf-8"))["names"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} is damaged: it holds {{"names": [[word, ...], ...]}}; delete it') from error
