"""The colours that latents are shown in.

Those of Okabe and Ito (2008), with violet for black: distinct under the common kinds of colour blindness. There are
more latents than colours, so that a latent's number always stands beside its colour.
"""

from __future__ import annotations

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7a52f0")
DARK_COLOURS = frozenset({"#0072b2", "#7a52f0"})
"""Those that white text reads better on than black."""
