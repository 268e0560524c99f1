"""Pruning: rules that choose a subset of the actions, and reports of what the choice costs."""
