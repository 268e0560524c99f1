"""Checkpoints are plain Hugging Face folders, and every way to name a wrong one says what is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ra3gym import lm
from ra3gym.envs.code.token import TokenCodeEnv
from ra3gym.errors import ModelError
from ra3gym.tasks import CodeTask

TEXT = "def f(x):\n    return [x + 1]\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = lm.train_tokenizer([TEXT], vocab_size=270)
    lm.add_latents(None, tokenizer, 3)
    return tokenizer


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokenizer.encode(TEXT)])).logits


def test_a_seed_decides_the_weights_and_the_global_state_is_untouched(tokenizer: Any) -> None:
    state = torch.get_rng_state()
    one, same, other = (lm.tiny_llama(tokenizer, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(logits(one, tokenizer), logits(same, tokenizer))
    assert not torch.equal(logits(one, tokenizer), logits(other, tokenizer))


@pytest.mark.parametrize("tie", [True, False])
def test_saved_and_loaded(tokenizer: Any, tmp_path: Path, tie: bool) -> None:
    model = lm.tiny_llama(tokenizer, hidden=32, kv_heads=2, tie=tie, seed=0)
    folder = tmp_path / "deep" / "checkpoint"
    lm.save(lm.tiny_llama(tokenizer, hidden=16, seed=5), tokenizer, folder)
    lm.save(model, tokenizer, folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]

    loaded = lm.load(folder)
    assert not loaded.model.training
    assert lm.latent_ids(loaded.tokenizer) == lm.latent_ids(tokenizer)
    assert torch.equal(logits(loaded.model, loaded.tokenizer), logits(model, tokenizer))
    assert lm.load(str(folder), dtype="bfloat16").model.dtype == torch.bfloat16

    plain_model, plain_tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert torch.equal(logits(plain_model, plain_tokenizer), logits(model, tokenizer))
    assert plain_tokenizer.decode(plain_tokenizer.encode(TEXT)) == TEXT


def test_a_copy_of_a_loaded_model_gives_the_same_bits(tokenizer: Any, tmp_path: Path) -> None:
    """Float32 sums depend on where in memory the weights begin; in a file that goes with the length of its header."""
    lm.save(lm.tiny_llama(tokenizer, hidden=32, seed=0), tokenizer, tmp_path / "model")
    loaded = lm.load(tmp_path / "model")
    assert {weight.data_ptr() % 64 for weight in loaded.model.parameters()} == {0}
    copied = pickle.loads(pickle.dumps(loaded))
    assert torch.equal(logits(copied.model, copied.tokenizer), logits(loaded.model, loaded.tokenizer))


def test_save_never_replaces_what_is_no_model(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    for target in (tmp_path, tmp_path / "precious"):
        with pytest.raises(ModelError, match="something other than a model"):
            lm.save(lm.tiny_llama(tokenizer, hidden=16, seed=0), tokenizer, target)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    for name, message in (
        (tmp_path / "missing", "no such folder or file"),
        ("./missing", "no such folder or file"),
        (tmp_path, "has no config.json"),
        (tmp_path / "weights.bin", r"give the folder that holds config.json, or a \.gguf file"),
        ("not a/hub-id", r"cannot load the model 'not a/hub-id'"),
    ):
        with pytest.raises(ModelError, match=message):
            lm.load(name)
    with pytest.raises(ModelError, match="float32, bfloat16, float16"):
        lm.load(tmp_path, dtype="int8")


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="a hub id that this machine can reach"):
        lm.load("ra3gym/no-such-model")


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-kind"}')
    with pytest.raises(ModelError, match="cannot load the model"):
        lm.load(tmp_path)


def test_a_gguf_file(tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import gguf

    base = lm.train_tokenizer([TEXT], vocab_size=270)
    model = lm.tiny_llama(base, hidden=32, heads=2, seed=0, tie=False)
    write_gguf(gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama"), model, base)
    capfd.readouterr()  # what its writer printed
    both = lm.load(tmp_path / "tiny.gguf"), lm.load(tmp_path, gguf_file="tiny.gguf")
    assert "%|" not in capfd.readouterr().err  # no progress bar
    for loaded in both:
        assert loaded.tokenizer.encode(TEXT, add_special_tokens=False)
        torch.testing.assert_close(logits(loaded.model, base), logits(model, base))
        assert loaded.model.half().dtype == torch.float16


def test_environments_load_a_gguf_file_once(tmp_path: Path) -> None:
    import gguf

    base = lm.train_tokenizer([TEXT], vocab_size=270)
    model = lm.tiny_llama(base, hidden=32, heads=2, seed=0, tie=False)
    write_gguf(gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama"), model, base)
    task = CodeTask("t", TEXT)
    one, other = (TokenCodeEnv(str(tmp_path / "tiny.gguf"), [task], max_new_tokens=4) for _ in range(2))
    assert one.problem.loaded is other.problem.loaded


def write_gguf(writer: Any, model: Any, tokenizer: Any) -> None:
    """The file that llama.cpp's converter would write for a Llama with a byte-level BPE."""
    import json

    config = model.config
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    renames = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    renames |= {"model.layers": "blk", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    renames |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {"self_attn.o_proj": "attn_output"}
    renames |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # GGUF interleaves the two halves of each rotary head.
            heads = config.num_attention_heads
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        for old, new in renames.items():
            name = name.replace(old, new)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
