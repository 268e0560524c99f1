"""The unbiased estimator of pass@k (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pass_at_k(n: npt.ArrayLike, c: npt.ArrayLike, k: int) -> npt.NDArray[np.float64]:
    """Return `1 - C(n-c, k) / C(n, k)`, the chance that k of n samples without replacement include a correct one.

    Args:
        n: samples per problem; a scalar or an array that broadcasts with `c`.
        c: correct samples per problem, `0 <= c <= n`.
        k: the k of pass@k, `1 <= k <= n`.

    Returns:
        One estimate per problem, float64, of the broadcast shape; their mean is the result of a benchmark.

    Raises:
        ValueError: `k < 1`, `n < k`, or `c` outside `[0, n]`.
    """
    n, c = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64))
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if n.size and n.min() < k:
        raise ValueError(f"pass@{k} needs at least {k} samples per problem, got {n.min()}")
    if np.any((c < 0) | (c > n)):
        raise ValueError("the number of correct samples must lie between 0 and n")
    misses = np.arange(k, dtype=np.float64)
    wrong = (n - c)[..., None] - misses  # C(n-c, k) / C(n, k) = prod_i (n-c-i) / (n-i), i = 0..k-1
    return np.asarray(1.0 - np.prod(np.maximum(wrong, 0.0) / (n[..., None] - misses), axis=-1))
