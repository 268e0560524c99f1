"""Rationale latents: comments that the model writes above the expert's lines, learned by policy gradient."""
