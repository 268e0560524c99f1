"""`ra3gym/OptionMDP-v0`: a known random MDP with options."""
