"""Options in known MDPs: exact optima, random families, and how long decisions last."""
