"""One growing token sequence under a model: what an environment steps through, at one forward pass per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ra3gym.errors import ConfigError, ModelError
from ra3gym.lm.caches import warn_slow_path
from ra3gym.lm.model import LoadedModel
from ra3gym.lm.tokenizer import decode_completion, latent_ids
from ra3gym.tasks.answers import PAUSE_TOKEN


class TokenStream:
    """A prompt and the tokens written after it, with the model's cache, next-token log-probabilities and hidden state.

    Args:
        loaded: any causal language model of transformers; it is only read.
        prompt_ids: at least one token.

    Attributes:
        logp_V: float32, nats: log-probabilities of the next token.
        hidden_D: float32: the last layer's state at the last token, as the output layer reads it.

    Raises:
        ConfigError: an empty prompt.
    """

    logp_V: torch.Tensor
    hidden_D: torch.Tensor

    def __init__(self, loaded: LoadedModel, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise ConfigError("a token stream needs a prompt of at least one token; see encode_prompt")
        self.prompt_ids = list(prompt_ids)
        self.written: list[int] = []
        self._loaded = loaded
        self._cache: Any = None
        self._read(self.prompt_ids)

    def write(self, token: int) -> None:
        """Append one token and read it."""
        self.written.append(token)
        # A model without a cache of its own that it returns (Mamba, RecurrentGemma) reads the whole text again.
        self._read([token] if self._cache is not None else [*self.prompt_ids, *self.written])

    @property
    def text(self) -> str:
        """The written tokens as text, special tokens included."""
        return decode_completion(self._loaded.tokenizer, self.prompt_ids, self.written)

    @torch.inference_mode()
    def _read(self, ids: list[int]) -> None:
        model: Any = self._loaded.model
        output = model(
            input_ids=torch.tensor([ids], device=model.device),
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=True,
            logits_to_keep=1,
        )
        self._cache = getattr(output, "past_key_values", None)
        if self._cache is None:
            warn_slow_path(model)
        self.logp_V = output.logits[0, -1].float().log_softmax(-1).cpu()
        self.hidden_D = output.hidden_states[-1][0, -1].float().cpu()


def end_ids(loaded: LoadedModel) -> frozenset[int]:
    """Return the tokens that end a completion: the tokenizer's, and those of the model's generation config.

    Raises:
        ModelError: there is no such token.
    """
    config: Any = loaded.model.generation_config
    ends = {loaded.tokenizer.eos_token_id}
    configured = None if config is None else config.eos_token_id
    ends |= set(configured) if isinstance(configured, (list, tuple)) else {configured}
    ends.discard(None)
    if not ends:
        raise ModelError("the tokenizer has no end token; set tokenizer.eos_token")
    return frozenset(int(token) for token in ends)


def writable_mask(loaded: LoadedModel) -> torch.Tensor:
    """Return bool `(V,)`, true at tokens that a completion may hold.

    It is false at ids that the tokenizer does not know (embeddings are often padded to a round size) and at special
    tokens other than end tokens, latents and the pause token: begin, padding, chat markers.

    Raises:
        ModelError: the tokenizer has more tokens than the model.
    """
    tokenizer: Any = loaded.tokenizer
    config: Any = loaded.model.config
    vocab_size = config.get_text_config().vocab_size
    if len(tokenizer) > vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model embeds {vocab_size}; resize the model's "
            "embeddings (add_latents does both) and save them together"
        )
    mask_V = torch.zeros(vocab_size, dtype=torch.bool)
    mask_V[: len(tokenizer)] = True
    special = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
    mask_V[torch.tensor([*special, *tokenizer.all_special_ids], dtype=torch.int64)] = False
    kept = [*end_ids(loaded), *latent_ids(tokenizer)]
    if PAUSE_TOKEN in tokenizer.get_added_vocab():
        kept.append(tokenizer.convert_tokens_to_ids(PAUSE_TOKEN))
    mask_V[torch.tensor(kept)] = True
    return mask_V
