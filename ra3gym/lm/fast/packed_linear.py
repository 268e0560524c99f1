"""Linear layers whose weights do not change for a while, laid out once for the kernels of the CPU.

With few rows a product `x W^T` costs less than bringing W into the order that the kernel reads, which `F.linear` does
anew at each call. A decoder multiplies by the same weights at each token.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_ELEMENTS = 2**16
"""Smaller weights stay as they are: the packed product's call costs more than it spares."""


class PackedLinear:
    """`F.linear(x, weight, bias)` without gradient; later changes of the weight may or may not be seen.

    In float32 on one core this takes 0.5 of `F.linear`'s time with 8 rows and 0.7 with 32; making it costs as much as
    about 10 products. Where oneDNN does not apply (another device or type, a build without it), and without `pack`, it
    is `F.linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, pack: bool = True) -> None:
        self._plain, self._bias = weight, None if bias is None else bias.detach()
        self._packs = pack and _packs(weight)
        # PyTorch's own compiler makes frozen linear layers of these two operators.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None) if self._packs else weight

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as it was made: what oneDNN laid out has no form outside the process."""
        return partial(PackedLinear, pack=self._packs), (self._plain, self._bias)

    def __call__(self, x_BD: Tensor) -> Tensor:
        """The product, shape `(B, outputs)`."""
        if not self._packs:
            return F.linear(x_BD, self._weight, self._bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x_BD, self._weight, self._bias, "none", [], "")
        return product


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by this weight in its own type (autocast would ask for another)."""
    if (
        weight.numel() < _LEAST_ELEMENTS
        or weight.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
