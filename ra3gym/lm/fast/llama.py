"""A lean decoder for models of Llama's kind: the same numbers as transformers, without its overhead per call.

For a model of 0.1M parameters that overhead outweighs the arithmetic. The prompts go through the model's own forward
pass; from there on, keys and values live in buffers made once, projections that share an input are one product, and a
prompt's keys are read once for all rows of its group.
(For whole sequences, as in training, a forward pass of our own gained nothing measurable.)

Shape suffixes: P prompts, M rows, S prompt positions, L positions, H query heads, K key-value heads, R = H / K query
heads per key-value head, E head size, D width, V vocabulary.
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
    """E, of a model that `supports` takes; not every configuration tells it."""
    return int(model.model.layers[0].self_attn.head_dim)


class LlamaDecoder:
    """`ra3gym.lm.sampling.Decoder` for models of Llama's kind.

    Prompts are held once. The rows of a group ask their prompt's keys together, as one product, and each its own keys
    apart; one softmax runs over both. With one row per prompt, the row's own keys begin with the prompt's.
    """

    def __init__(self, model: Any, ids_PS: Tensor, mask_PS: Tensor, group_size: int, max_new_tokens: int) -> None:
        config = model.config
        output = model(
            input_ids=ids_PS,
            attention_mask=mask_PS,
            position_ids=(mask_PS.cumsum(1) - 1).clamp_(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_MV: Tensor = output.logits[:, -1].repeat_interleave(group_size, 0)
        self._embedding_VD, self._norm = model.model.embed_tokens.weight, model.model.norm
        pack = max_new_tokens >= _PACK_FROM
        self._head = PackedLinear(model.lm_head.weight, pack=pack)
        self._layers = [_DecoderLayer(layer, pack) for layer in model.model.layers]
        self._kv_heads, self._head_size = config.num_key_value_heads, head_size(model)
        self._scale = self._head_size**-0.5
        self._position_M = mask_PS.sum(1).repeat_interleave(group_size)
        last = int(self._position_M.max()) + max_new_tokens
        cos, sin = model.model.rotary_emb(self.logits_MV, torch.arange(last, device=ids_PS.device)[None])
        # rotate_half(x) * sin equals roll(x, E/2) * (sin with its first half negated).
        half = self._head_size // 2
        self._cos_LE, self._sin_LE = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

        num_prompts, prompt_length = ids_PS.shape
        self._rows = num_prompts * group_size
        cached = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        bias_PS: Tensor | None = None
        if not bool(mask_PS.all()):
            bias_PS = torch.zeros(mask_PS.shape, dtype=self.logits_MV.dtype, device=mask_PS.device)
            bias_PS.masked_fill_(mask_PS == 0, -torch.inf)
        self._prompts: _SharedPrompts | None = None
        self._filled = 0 if group_size > 1 else prompt_length
        self._bias_M1S: Tensor | None = None
        if group_size > 1:
            self._prompts = _SharedPrompts(cached, bias_PS, group_size)
        elif bias_PS is not None:
            self._bias_M1S = bias_PS[:, None]
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
        self._position_M = self._position_M[rows]
        if self._prompts is not None:
            self._prompts.keep(rows)
        if self._bias_M1S is not None:
            self._bias_M1S = self._bias_M1S[rows]

    def read(self, token_M: Tensor) -> None:
        """Append one token to each row."""
        self._step(token_M)
        self._position_M = self._position_M + 1
        self._filled += 1

    def _step(self, token_M: Tensor) -> None:
        """Write the keys and values of these tokens, and `logits_MV` behind them."""
        rows, kv_heads, size = self._rows, self._kv_heads, self._head_size
        cos_M1E = self._cos_LE[self._position_M][:, None]
        sin_M1E = self._sin_LE[self._position_M][:, None]
        x_MD = F.embedding(token_M, self._embedding_VD)
        for i, layer in enumerate(self._layers):
            qkv = layer.qkv(_rms_norm(x_MD, layer.norm_1, layer.eps)).view(rows, -1, size)
            queries_and_key = qkv[:, :-kv_heads]
            queries_and_key = queries_and_key * cos_M1E + queries_and_key.roll(size // 2, -1) * sin_M1E
            self._store(i, queries_and_key[:, -kv_heads:], qkv[:, -kv_heads:])
            x_MD = x_MD + layer.out(self._attend(i, queries_and_key[:, :-kv_heads]))
            gate, up = layer.gate_up(_rms_norm(x_MD, layer.norm_2, layer.eps)).chunk(2, dim=-1)
            x_MD = x_MD + layer.down(F.silu(gate) * up)
        self.logits_MV = self._head(_rms_norm(x_MD, self._norm.weight, self._norm.variance_epsilon))

    def _store(self, layer: int, key_MKE: Tensor, value_MKE: Tensor) -> None:
        """Put a key and a value of each row behind what is there."""
        self._keys[layer][:, :, self._filled] = key_MKE
        self._values[layer][:, :, self._filled] = value_MKE

    def _own(self, layer: int) -> tuple[Tensor, Tensor]:
        """The rows' own keys and values up to this token, two of `(M, K, length, E)`."""
        end = self._filled + 1
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def _hide(self, own_MHL: Tensor) -> None:
        """Have no row see, among its own keys, what it must not: the padding ahead of a prompt."""
        if self._bias_M1S is not None:
            own_MHL[:, :, : self._bias_M1S.shape[2]].add_(self._bias_M1S)

    def _attend(self, layer: int, query_MHE: Tensor) -> Tensor:
        """What the rows read, `(M, H * E)`, in the layer's shared prompts and in their own keys up to this token."""
        rows, kv_heads, size = self._rows, self._kv_heads, self._head_size
        query = (query_MHE * self._scale).reshape(rows * kv_heads, -1, size)
        keys, values = (buffer.flatten(0, 1) for buffer in self._own(layer))
        own_MHL = torch.bmm(query, keys.transpose(1, 2)).view(rows, -1, keys.shape[1])
        self._hide(own_MHL)
        if self._prompts is None:
            return torch.bmm(_softmax(own_MHL).view(*query.shape[:2], -1), values).view(rows, -1)
        shared_MHS = self._prompts.scores(layer, query.view(rows, kv_heads, -1, size))
        weights = _softmax(torch.cat([shared_MHS, own_MHL], dim=2))
        prompt_length = shared_MHS.shape[2]
        mixed = torch.bmm(weights.view(*query.shape[:2], -1)[:, :, prompt_length:], values).view(rows, -1)
        return mixed + self._prompts.mix(layer, weights[:, :, :prompt_length])


class _SharedPrompts:
    """Keys and values of prompts, each held once and asked by all rows of its group.

    The rows stand in a grid, a line of slots for each prompt; slots stay empty where a group has fewer rows left.
    """

    def __init__(self, cached: list[tuple[Tensor, Tensor]], bias_PS: Tensor | None, group_size: int) -> None:
        self._cached, self._bias_PS = cached, bias_PS
        self._lines, self._kv_heads = cached[0][0].shape[:2]
        self._group_size = group_size
        device = cached[0][0].device
        self._prompt_M = torch.arange(self._lines, device=device).repeat_interleave(group_size)
        self._slot_M: Tensor | None = None
        """The slot of each row; `None` where the rows fill the grid in order."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, and without the prompts that have none of them."""
        left, prompt_M, count = self._prompt_M[rows].unique(return_inverse=True, return_counts=True)
        if len(left) < self._lines:
            self._cached = [(keys[left], values[left]) for keys, values in self._cached]
            self._bias_PS = None if self._bias_PS is None else self._bias_PS[left]
        self._prompt_M, self._lines, self._group_size = prompt_M, len(left), int(count.max())
        order = prompt_M.argsort(stable=True)
        rank = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[prompt_M[order]]
        self._slot_M = torch.empty_like(order).index_copy_(0, order, prompt_M[order] * self._group_size + rank)
        if torch.equal(self._slot_M, torch.arange(self._lines * self._group_size, device=rows.device)):
            self._slot_M = None

    def scores(self, layer: int, query_MKRE: Tensor) -> Tensor:
        """Products of the rows' queries with the prompts' keys, `(M, H, S)`; minus infinity at padding."""
        keys_PKSE = self._cached[layer][0]
        scores = self._from_grid(self._to_grid(query_MKRE) @ keys_PKSE.transpose(2, 3), query_MKRE.shape[2])
        if self._bias_PS is not None:
            scores = scores + self._bias_PS[self._prompt_M][:, None]
        return scores

    def mix(self, layer: int, weights_MHS: Tensor) -> Tensor:
        """The prompts' values under these weights, `(M, H * E)`."""
        values_PKSE = self._cached[layer][1]
        weights_MKRS = weights_MHS.view(len(weights_MHS), self._kv_heads, -1, weights_MHS.shape[2])
        mixed_MHE = self._from_grid(self._to_grid(weights_MKRS) @ values_PKSE, weights_MKRS.shape[2])
        return mixed_MHE.flatten(1)

    def _to_grid(self, x_MKRX: Tensor) -> Tensor:
        """`(M, K, R, X)` as `(P, K, slots * R, X)`, 0 in empty slots."""
        if self._slot_M is not None:
            grid = x_MKRX.new_zeros((self._lines * self._group_size, *x_MKRX.shape[1:]))
            x_MKRX = grid.index_copy_(0, self._slot_M, x_MKRX)
        return x_MKRX.view(self._lines, -1, *x_MKRX.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _from_grid(self, x_PKGX: Tensor, heads: int) -> Tensor:
        """`(P, K, slots * R, X)` as `(M, K * R, X)`, given R."""
        x_PKGX = x_PKGX.view(self._lines, self._kv_heads, self._group_size, heads, -1)
        x_GKRX = x_PKGX.transpose(1, 2).flatten(0, 1)
        return (x_GKRX if self._slot_M is None else x_GKRX.index_select(0, self._slot_M)).flatten(1, 2)


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
