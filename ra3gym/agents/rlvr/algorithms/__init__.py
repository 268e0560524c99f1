"""RLVR algorithms by name: advantages, objectives, KL estimates, and the scope in which they act."""
