"""A lean decoder for models of Llama's kind: the same numbers as transformers, without its overhead per call.

For a model of 0.1M parameters that overhead outweighs the arithmetic. The prompts go through the model's own forward
pass; from there on, keys and values live in buffers made once, projections that share an input are one product, and a
prompt's keys are read once for all rows of its group.
(For whole sequences, as in training, a forward pass of our own gained nothing measurable.)

Shape letters: see CONTRIBUTING.md (B rows still in the batch, G = H / J query heads of one key-value head).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ra3gym.lm.fast.packed_linear import PackedLinear

_PACK_FROM = 16
"""With at least so many new tokens, laying out the weights anew pays for itself."""

_KINDS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"})
"""They differ in biases and in sliding windows."""


def supports(model: Any) -> bool:
    """Whether `LlamaDecoder` computes exactly this model.

    A plain Llama, Qwen2 or Mistral without a sliding window, on one device, not quantised, without adapters.
    """
    if type(model).__name__ not in _KINDS or model.config.hidden_act != "silu":
        return False
    if getattr(model.config, "sliding_window", None) is not None:
        return False
    if (
        model.model.rotary_emb.rope_type in ("dynamic", "longrope")
        or type(model.model.embed_tokens) is not nn.Embedding
    ):
        return False
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return False
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    feed_forward = ("gate_proj", "up_proj", "down_proj")
    return type(model.lm_head) is nn.Linear and all(
        type(getattr(block, name)) is nn.Linear
        for layer in model.model.layers
        for block, names in ((layer.self_attn, attention), (layer.mlp, feed_forward))
        for name in names
    )


def head_size(model: Any) -> int:
    """I, of a model that `supports` takes; not every configuration tells it."""
    return int(model.model.layers[0].self_attn.head_dim)


class LlamaDecoder:
    """`ra3gym.lm.sampling.Decoder` for models of Llama's kind.

    Prompts are held once. The rows of a group ask their prompt's keys together, as one product, and each its own keys
    apart; one softmax runs over both. With one row per prompt, the row's own keys begin with the prompt's.
    """

    def __init__(self, model: Any, ids_PL: Tensor, mask_PL: Tensor, group_size: int, max_new_tokens: int) -> None:
        config = model.config
        output = model(
            input_ids=ids_PL,
            attention_mask=mask_PL,
            position_ids=(mask_PL.cumsum(1) - 1).clamp_(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_BV: Tensor = output.logits[:, -1].repeat_interleave(group_size, 0)
        self._embedding_VD, self._norm = model.model.embed_tokens.weight, model.model.norm
        pack = max_new_tokens >= _PACK_FROM
        self._head = PackedLinear(model.lm_head.weight, pack=pack)
        self._layers = [_DecoderLayer(layer, pack) for layer in model.model.layers]
        self._kv_heads, self._head_size = config.num_key_value_heads, head_size(model)
        self._scale = self._head_size**-0.5
        self._position_B = mask_PL.sum(1).repeat_interleave(group_size)
        last = int(self._position_B.max()) + max_new_tokens
        cos, sin = model.model.rotary_emb(self.logits_BV, torch.arange(last, device=ids_PL.device)[None])
        # rotate_half(x) * sin equals roll(x, I/2) * (sin with its first half negated).
        half = self._head_size // 2
        self._cos_XI, self._sin_XI = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

        num_prompts, prompt_length = ids_PL.shape
        self._rows = num_prompts * group_size
        cached = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        bias_PL: Tensor | None = None
        if not bool(mask_PL.all()):
            bias_PL = torch.zeros(mask_PL.shape, dtype=self.logits_BV.dtype, device=mask_PL.device)
            bias_PL.masked_fill_(mask_PL == 0, -torch.inf)
        self._prompts: _SharedPrompts | None = None
        self._filled = 0 if group_size > 1 else prompt_length
        self._bias_B1L: Tensor | None = None
        if group_size > 1:
            self._prompts = _SharedPrompts(cached, bias_PL, group_size)
        elif bias_PL is not None:
            self._bias_B1L = bias_PL[:, None]
        size = (self._rows, self._kv_heads, self._filled + max_new_tokens, self._head_size)
        self._keys = [keys.new_empty(size) for keys, _ in cached]
        self._values = [values.new_empty(size) for _, values in cached]
        if self._filled:
            for own_keys, own_values, (keys, values) in zip(self._keys, self._values, cached, strict=True):
                own_keys[:, :, : self._filled], own_values[:, :, : self._filled] = keys, values

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self._rows = len(rows)
        for buffers in (self._keys, self._values):
            for i, buffer in enumerate(buffers):
                kept = buffer.new_empty((len(rows), *buffer.shape[1:]))
                kept[:, :, : self._filled] = buffer[:, :, : self._filled].index_select(0, rows)
                buffers[i] = kept
        self._position_B = self._position_B[rows]
        if self._prompts is not None:
            self._prompts.keep(rows)
        if self._bias_B1L is not None:
            self._bias_B1L = self._bias_B1L[rows]

    def read(self, token_B: Tensor) -> None:
        """Append one token to each row."""
        self._step(token_B)
        self._position_B = self._position_B + 1
        self._filled += 1

    def _step(self, token_B: Tensor) -> None:
        """Write the keys and values of these tokens, and `logits_BV` behind them."""
        rows, kv_heads, size = self._rows, self._kv_heads, self._head_size
        cos_B1I = self._cos_XI[self._position_B][:, None]
        sin_B1I = self._sin_XI[self._position_B][:, None]
        x_BD = F.embedding(token_B, self._embedding_VD)
        for i, layer in enumerate(self._layers):
            qkv = layer.qkv(_rms_norm(x_BD, layer.norm_1, layer.eps)).view(rows, -1, size)
            queries_and_key = qkv[:, :-kv_heads]
            queries_and_key = queries_and_key * cos_B1I + queries_and_key.roll(size // 2, -1) * sin_B1I
            self._store(i, queries_and_key[:, -kv_heads:], qkv[:, -kv_heads:])
            x_BD = x_BD + layer.out(self._attend(i, queries_and_key[:, :-kv_heads]))
            gate, up = layer.gate_up(_rms_norm(x_BD, layer.norm_2, layer.eps)).chunk(2, dim=-1)
            x_BD = x_BD + layer.down(F.silu(gate) * up)
        self.logits_BV = self._head(_rms_norm(x_BD, self._norm.weight, self._norm.variance_epsilon))

    def _store(self, layer: int, key_BJI: Tensor, value_BJI: Tensor) -> None:
        """Put a key and a value of each row behind what is there."""
        self._keys[layer][:, :, self._filled] = key_BJI
        self._values[layer][:, :, self._filled] = value_BJI

    def _own(self, layer: int) -> tuple[Tensor, Tensor]:
        """The rows' own keys and values up to this token, two of `(B, J, length, I)`."""
        end = self._filled + 1
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def _hide(self, own_BHX: Tensor) -> None:
        """Have no row see, among its own keys, what it must not: the padding ahead of a prompt."""
        if self._bias_B1L is not None:
            own_BHX[:, :, : self._bias_B1L.shape[2]].add_(self._bias_B1L)

    def _attend(self, layer: int, query_BHI: Tensor) -> Tensor:
        """What the rows read, `(B, H * I)`, in the layer's shared prompts and in their own keys up to this token."""
        rows, kv_heads, size = self._rows, self._kv_heads, self._head_size
        query = (query_BHI * self._scale).reshape(rows * kv_heads, -1, size)
        keys, values = (buffer.flatten(0, 1) for buffer in self._own(layer))
        own_BHX = torch.bmm(query, keys.transpose(1, 2)).view(rows, -1, keys.shape[1])
        self._hide(own_BHX)
        if self._prompts is None:
            return torch.bmm(_softmax(own_BHX).view(*query.shape[:2], -1), values).view(rows, -1)
        shared_BHL = self._prompts.scores(layer, query.view(rows, kv_heads, -1, size))
        weights = _softmax(torch.cat([shared_BHL, own_BHX], dim=2))
        prompt_length = shared_BHL.shape[2]
        mixed = torch.bmm(weights.view(*query.shape[:2], -1)[:, :, prompt_length:], values).view(rows, -1)
        return mixed + self._prompts.mix(layer, weights[:, :, :prompt_length])


class _SharedPrompts:
    """Keys and values of prompts, each held once and asked by all rows of its group.

    The rows stand in a grid, a line of slots for each prompt; slots stay empty where a group has fewer rows left.
    """

    def __init__(self, cached: list[tuple[Tensor, Tensor]], bias_PL: Tensor | None, group_size: int) -> None:
        self._cached, self._bias_PL = cached, bias_PL
        self._lines, self._kv_heads = cached[0][0].shape[:2]
        self._group_size = group_size
        device = cached[0][0].device
        self._prompt_B = torch.arange(self._lines, device=device).repeat_interleave(group_size)
        self._slot_B: Tensor | None = None
        """The slot of each row; `None` where the rows fill the grid in order."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, and without the prompts that have none of them."""
        left, prompt_B, count = self._prompt_B[rows].unique(return_inverse=True, return_counts=True)
        if len(left) < self._lines:
            self._cached = [(keys[left], values[left]) for keys, values in self._cached]
            self._bias_PL = None if self._bias_PL is None else self._bias_PL[left]
        self._prompt_B, self._lines, self._group_size = prompt_B, len(left), int(count.max())
        order = prompt_B.argsort(stable=True)
        rank = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[prompt_B[order]]
        self._slot_B = torch.empty_like(order).index_copy_(0, order, prompt_B[order] * self._group_size + rank)
        if torch.equal(self._slot_B, torch.arange(self._lines * self._group_size, device=rows.device)):
            self._slot_B = None

    def scores(self, layer: int, query_BJGI: Tensor) -> Tensor:
        """Products of the rows' queries with the prompts' keys, `(B, H, L)`; minus infinity at padding."""
        keys_PJLI = self._cached[layer][0]
        scores = self._from_grid(self._to_grid(query_BJGI) @ keys_PJLI.transpose(2, 3), query_BJGI.shape[2])
        if self._bias_PL is not None:
            scores = scores + self._bias_PL[self._prompt_B][:, None]
        return scores

    def mix(self, layer: int, weights_BHL: Tensor) -> Tensor:
        """The prompts' values under these weights, `(B, H * I)`."""
        values_PJLI = self._cached[layer][1]
        weights_BJGL = weights_BHL.view(len(weights_BHL), self._kv_heads, -1, weights_BHL.shape[2])
        mixed_BHI = self._from_grid(self._to_grid(weights_BJGL) @ values_PJLI, weights_BJGL.shape[2])
        return mixed_BHI.flatten(1)

    def _to_grid(self, rows: Tensor) -> Tensor:
        """`(B, J, G, width)` as `(P, J, slots * G, width)`, 0 in empty slots."""
        if self._slot_B is not None:
            empty = rows.new_zeros((self._lines * self._group_size, *rows.shape[1:]))
            rows = empty.index_copy_(0, self._slot_B, rows)
        return rows.view(self._lines, -1, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _from_grid(self, grid: Tensor, heads: int) -> Tensor:
        """`(P, J, slots * G, width)` as `(B, J * G, width)`, given G."""
        grid = grid.view(self._lines, self._kv_heads, self._group_size, heads, -1)
        slots = grid.transpose(1, 2).flatten(0, 1)
        return (slots if self._slot_B is None else slots.index_select(0, self._slot_B)).flatten(1, 2)


def _softmax(scores: Tensor) -> Tensor:
    """In float32 at least, as transformers has it for models of less."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)


class _DecoderLayer:
    """One layer's products, ready for many small calls."""

    def __init__(self, layer: Any, pack: bool) -> None:
        weights = _LayerWeights(layer)
        self.norm_1, self.norm_2, self.eps = weights.norm_1, weights.norm_2, weights.eps
        self.qkv = PackedLinear(weights.qkv, weights.qkv_bias, pack=pack)
        self.out = PackedLinear(weights.out, weights.out_bias, pack=pack)
        self.gate_up = PackedLinear(weights.gate_up, weights.gate_up_bias, pack=pack)
        self.down = PackedLinear(weights.down, weights.down_bias, pack=pack)


class _LayerWeights:
    """The weights of one layer, with the projections that share an input joined into one."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm_1, self.norm_2 = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.eps = layer.input_layernorm.variance_epsilon
        self.qkv, self.qkv_bias = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.out_bias = attention.o_proj.weight, attention.o_proj.bias
        self.gate_up, self.gate_up_bias = _joined(mlp.gate_proj, mlp.up_proj)
        self.down, self.down_bias = mlp.down_proj.weight, mlp.down_proj.bias


def _joined(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    biases: list[Any] = [layer.bias for layer in layers]
    return torch.cat([layer.weight for layer in layers]), None if biases[0] is None else torch.cat(biases)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x_fp32 = x.float()
    return weight * (x_fp32 * torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
