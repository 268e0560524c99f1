"""Experiments: the commands, the studies and their reports."""
