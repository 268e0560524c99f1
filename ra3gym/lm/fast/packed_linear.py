"""Linear layers whose weights do not change for a while, laid out once for the kernels of the CPU.

With few rows, a product `x W^T` costs less than bringing W into the order that the kernel reads, which `F.linear` does
at each call. A decoder multiplies by the same weights at each token.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_ELEMENTS = 2**16
"""Smaller weights are not packed: the call of a packed product costs more than it saves."""


class PackedLinear:
    """`F.linear(x, weight, bias)` without gradient; a later change of the weight may or may not have an effect.

    In float32 on one core this takes half of `F.linear`'s time with 8 rows and 0.7 of it with 32. To make it costs as
    much as about 10 products. Where oneDNN does not apply (another device or type, a build without it), and without
    `pack`, it is `F.linear`. Call it outside autocast: it has a type of its own.

    Args:
        weight: `(outputs, D)`.
        bias: `(outputs,)`, or `None`.
        dtype: the type of the product; the weight's own when `None`.
        pack: whether to lay out the weight anew where oneDNN applies.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, dtype: torch.dtype | None = None, pack: bool = True
    ) -> None:
        self._dtype = weight.dtype if dtype is None else dtype
        self._plain = weight.detach().to(self._dtype)
        self._bias = None if bias is None else bias.detach().to(self._dtype)
        self._packs = pack and _packs(self._plain)
        # PyTorch's own compiler makes frozen linear layers of these two operators.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(self._plain, None) if self._packs else self._plain

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the plain weights: oneDNN's layout has no form outside the process."""
        return partial(PackedLinear, pack=self._packs), (self._plain, self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        """The product, `(..., outputs)`."""
        if x.dtype != self._dtype:
            x = x.to(self._dtype)
        if not self._packs:
            return F.linear(x, self._weight, self._bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return product


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by this weight in the weight's own type."""
    if weight.numel() < _LEAST_ELEMENTS or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
