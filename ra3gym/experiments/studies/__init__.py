"""Studies: arms, seeds and grids of runs."""
