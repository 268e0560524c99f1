"""Make, load and save language models, which are plain Hugging Face models and tokenizers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ra3gym.errors import MissingExtraError, ModelError
from ra3gym.files import replacing_folder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = Path(__file__).parent / "embedded"
"""The checkpoint in the package; its name for `load` is "embedded"."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def tiny_llama(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    intermediate: int | None = None,
    max_length: int = 512,
    tie: bool = True,
    seed: int,
) -> LlamaForCausalLM:
    """Make a small, randomly initialized Llama for `tokenizer`, in float32 on the CPU.

    Args:
        tokenizer: sets the vocabulary and the special ids; add latents to it before, or call `add_latents` after.
        hidden: width; 64 to 96 suits the embedded domain.
        layers: depth; 2 or 3.
        heads: attention heads; must divide `hidden`.
        kv_heads: key-value heads (grouped-query attention when fewer than `heads`); `heads` when `None`.
        intermediate: width of the gated feed-forward layer; `8/3 * hidden`, rounded up to 16, when `None`.
        max_length: longest sequence in tokens.
        tie: share the input and output embeddings.
        seed: the same seed gives the same weights; the global random state is not changed.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate or -(-8 * hidden // (3 * 16)) * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=tie,
        initializer_range=0.08,  # the usual 0.02, for widths in the thousands, would delay learning here
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlamaForCausalLM(config)


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    gguf_file: str | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer, in evaluation mode.

    Args:
        name_or_path: "embedded" (the checkpoint in the package), a folder, a `.gguf` file, or a hub id.
        device: where the weights go, as torch names it.
        dtype: "float32", "bfloat16" or "float16".
        gguf_file: the name of a GGUF file in that folder or hub repository.

    Raises:
        ModelError: no usable model at that place, or no such device.
        MissingExtraError: a GGUF file, and the package `gguf` is not installed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in _DTYPES:
        raise ModelError(f"dtype {dtype!r} is not supported; use one of {', '.join(_DTYPES)}")
    _check_device(device)
    source, gguf_file = _resolve(name_or_path, gguf_file)
    if gguf_file is not None and find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf", f"loading {gguf_file}")
    gguf: dict[str, Any] = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        with _no_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(source, **gguf)
            model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=_DTYPES[dtype], **gguf)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"cannot load the model {str(name_or_path)!r}: {reason} (Use a folder written by save_pretrained, "
            "a hub id that this machine can reach, a .gguf file, or 'embedded'.)"
        ) from error
    if gguf_file is not None:
        model = _without_quantization(model, _DTYPES[dtype])
    _align(model)
    return LoadedModel(model.to(device).eval(), tokenizer)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> None:
    """Write a normal Hugging Face folder (safetensors), whole or not at all; an older checkpoint there is replaced.

    Raises:
        ModelError: `folder` exists and holds something other than a model.
    """
    target = Path(folder)
    if target.exists() and (target.is_file() or (any(target.iterdir()) and not (target / "config.json").is_file())):
        raise ModelError(f"{target} holds something other than a model; save to a new folder")
    with replacing_folder(target) as fresh:
        with _no_progress_bars():
            model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)


def _align(model: torch.nn.Module) -> None:
    """Move every weight to the beginning of a cache line, where torch's own memory begins.

    Weights read from a file begin where its header ends, and the last bits of a float32 sum depend on that: a copy of
    the model (by pickle, for example) would not give the same numbers.
    """
    for weight in model.parameters():
        if weight.data_ptr() % 64:
            weight.data = weight.data.clone()


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot use the device {device!r}: {reason} ('cpu' works everywhere)") from error


def quiet_libraries() -> None:
    """Silence warnings and progress bars of transformers, for commands; errors are raised nevertheless."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _resolve(name_or_path: str | os.PathLike[str], gguf_file: str | None) -> tuple[str, str | None]:
    """Return the folder or hub id, and the GGUF file in it; raises `ModelError` for a path without a model."""
    name = os.fspath(name_or_path)
    path = EMBEDDED if name == "embedded" else Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name} is a file; give the folder that holds config.json, or a .gguf file")
        return str(path.parent), path.name
    if path.is_dir():
        if not (path / (gguf_file or "config.json")).is_file():
            raise ModelError(f"{name} has no {gguf_file or 'config.json'}; give a folder written by save_pretrained")
        return str(path), gguf_file
    is_path = isinstance(name_or_path, os.PathLike) or name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path or path == EMBEDDED:
        raise ModelError(f"no model at {path}: there is no such folder or file")
    return name, gguf_file


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide progress bars of transformers, which would disturb those of the command line."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    gguf: Any = modeling_gguf_pytorch_utils
    own_bar = gguf.tqdm  # the loader of GGUF files has a progress bar of its own, without a switch
    gguf.tqdm = partial(own_bar, disable=True)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        gguf.tqdm = own_bar
        if shown:
            logging.enable_progress_bar()


def _without_quantization(model: Any, dtype: torch.dtype) -> Any:
    """Copy the weights into a model that is not marked as quantized (transformers marks every GGUF load so)."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = cast_weights(type(model)(config), dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def cast_weights(model: Any, dtype: torch.dtype) -> Any:
    """Cast a model's parameters in place, and return it. Its buffers keep their precision.

    `model.to(dtype)` would round the frequencies of the rotary embedding, and so move every token.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model
