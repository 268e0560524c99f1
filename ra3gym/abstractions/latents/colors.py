"""The colors of latents in frames, terminals and reports.

They are those of Okabe and Ito (2008), with violet for black, and distinct under the common kinds of color blindness.
There are more latents than colors, so always show a latent's number beside its color.
"""

from __future__ import annotations

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7a52f0")
DARK_COLORS = frozenset({"#0072b2", "#7a52f0"})
"""The colors on which white text is easier to read than black."""
