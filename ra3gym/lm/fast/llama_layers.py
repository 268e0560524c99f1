"""The weights of a model of Llama's kind, laid out for many small products: what the decoders of this folder share.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ra3gym.lm.fast.packed_linear import PackedLinear

_KINDS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"})
"""They differ in biases and in sliding windows."""


def supports(model: Any) -> bool:
    """Whether `LlamaLayers` computes exactly this model.

    It does so for a plain Llama, Qwen2 or Mistral without a sliding window, on one device, neither quantized nor with
    adapters.
    """
    if type(model).__name__ not in _KINDS or model.config.hidden_act != "silu":
        return False
    if getattr(model.config, "sliding_window", None) is not None:
        return False
    body = model.model
    if body.rotary_emb.rope_type in ("dynamic", "longrope") or type(body.embed_tokens) is not nn.Embedding:
        return False
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return False
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    feed_forward = ("gate_proj", "up_proj", "down_proj")
    return type(model.lm_head) is nn.Linear and all(
        type(getattr(block, name)) is nn.Linear
        for layer in body.layers
        for block, names in ((layer.self_attn, attention), (layer.mlp, feed_forward))
        for name in names
    )


def product_dtype(weight: Tensor) -> torch.dtype:
    """The type in which a product with this weight is taken: that of autocast where it is on, else the weight's own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class LlamaLayers:
    """All products of a model that `supports` accepts, in one precision from beginning to end.

    The precision is decided here, once: products are taken in the type of autocast where it is on, as the model's own
    pass would take them, and the weights are cast once rather than at each token. Calls belong inside `precision()`, so
    that it does not matter whether autocast is on later.

    Attributes:
        dtype: the type of products, and of keys and values.
        kv_heads: J, key-value heads.
        head_size: I, size of a head.
        layers: the layers, first to last.
    """

    def __init__(self, model: Any, *, pack: bool = True) -> None:
        self._body, self._embedding_VD = model.model, model.model.embed_tokens.weight
        self.dtype = product_dtype(self._embedding_VD)
        self.kv_heads = int(model.config.num_key_value_heads)
        self.head_size = int(model.model.layers[0].self_attn.head_dim)  # not every configuration has it
        self.layers = [DecoderLayer(layer, self.dtype, pack=pack) for layer in model.model.layers]
        self._head = PackedLinear(model.lm_head.weight, dtype=self.dtype, pack=pack)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: nothing here changes, and the weights are large."""
        return self

    def precision(self) -> AbstractContextManager[Any]:
        """The context for calls of the layers: autocast is off in it."""
        device = self._embedding_VD.device.type
        return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()

    def embed(self, ids: Tensor) -> Tensor:
        """The input states of tokens, `(..., D)`, in the type of the weights."""
        return F.embedding(ids, self._embedding_VD)

    def rotations(self, positions: int) -> tuple[Tensor, Tensor]:
        """`cos_XI` and `sin_XI` of so many positions, for `rotated`."""
        place_1X = torch.arange(positions, device=self._embedding_VD.device)[None]
        cos, sin = self._body.rotary_emb(self._embedding_VD, place_1X)
        half = self.head_size // 2
        return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    def rotated(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys, `(..., I)`, turned to their positions.

        `rotate_half(x) * sin` of transformers equals `roll(x, I/2) * (sin with its first half negated)`.
        """
        turned = heads * cos + heads.roll(self.head_size // 2, -1) * sin
        return turned if turned.dtype == self.dtype else turned.to(self.dtype)

    def final_states(self, x: Tensor) -> Tensor:
        """What the output layer reads, `(B, D)`."""
        return rms_norm(x, self._body.norm.weight, self._body.norm.variance_epsilon)

    def logits(self, states_BD: Tensor) -> Tensor:
        """Next-token logits, `(B, V)`."""
        return self._head(states_BD)


class DecoderLayer:
    """The products of one layer; projections that share an input are one product."""

    def __init__(self, layer: Any, dtype: torch.dtype, *, pack: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norm_1, self._norm_2 = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self._eps = layer.input_layernorm.variance_epsilon
        self._qkv = _joined(dtype, pack, attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = _joined(dtype, pack, attention.o_proj)
        self._gate_up = _joined(dtype, pack, mlp.gate_proj, mlp.up_proj)
        self._down = _joined(dtype, pack, mlp.down_proj)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """Query heads, key heads and value heads of the states, side by side: `(..., (H + 2 J) I)`."""
        return self._qkv(rms_norm(x, self._norm_1, self._eps))

    def feed_forward(self, x: Tensor) -> Tensor:
        """What the second half of the layer adds to the states, `(..., D)`."""
        gate, up = self._gate_up(rms_norm(x, self._norm_2, self._eps)).chunk(2, dim=-1)
        return self._down(F.silu(gate) * up)


def _joined(dtype: torch.dtype, pack: bool, *layers: nn.Linear) -> PackedLinear:
    if len(layers) == 1:
        return PackedLinear(layers[0].weight, layers[0].bias, dtype=dtype, pack=pack)
    biases: list[Any] = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat(biases)
    return PackedLinear(torch.cat([layer.weight for layer in layers]), bias, dtype=dtype, pack=pack)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` over its root mean square along the last axis, taken in float32, times the weight."""
    x_fp32 = x.float()
    return weight * (x_fp32 * torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
