"""Exact inference of latents: the sticky prior, forward-backward and Viterbi, and the E-step as a decision problem."""
