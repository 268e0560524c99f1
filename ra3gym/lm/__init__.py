"""Language models: make, load, sample from, score and train one; any causal language model of transformers."""

from ra3gym.lm.allocator import keep_freed_memory
from ra3gym.lm.completion import Completions, complete, token_budgets
from ra3gym.lm.fast.group_scoring import CompletionScores, group_logits, group_scores
from ra3gym.lm.loss import training_loss
from ra3gym.lm.model import LoadedModel, load, quiet_libraries, save, tiny_llama
from ra3gym.lm.packing import TokenBatch, batches, pack
from ra3gym.lm.sampling import Samples, generate
from ra3gym.lm.scoring import completion_logprobs, token_logprobs
from ra3gym.lm.stopping import StopRule
from ra3gym.lm.tokenizer import (
    add_latents,
    encode_prompt,
    latent_ids,
    pause_id,
    train_tokenizer,
)
from ra3gym.tasks.answers import latent_token, split_latents, strip_latents

__all__ = [
    "CompletionScores",
    "Completions",
    "LoadedModel",
    "Samples",
    "StopRule",
    "TokenBatch",
    "add_latents",
    "batches",
    "complete",
    "completion_logprobs",
    "encode_prompt",
    "generate",
    "group_logits",
    "group_scores",
    "keep_freed_memory",
    "latent_ids",
    "latent_token",
    "load",
    "pack",
    "pause_id",
    "quiet_libraries",
    "save",
    "split_latents",
    "strip_latents",
    "tiny_llama",
    "token_budgets",
    "token_logprobs",
    "train_tokenizer",
    "training_loss",
]
