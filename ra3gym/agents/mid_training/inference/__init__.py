"""Inference agents: find the posterior over latents of one problem, exactly or by RL."""
