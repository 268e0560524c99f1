"""Latents over lines of code: traces as arrays, exact inference, and a codebook learned by EM.

`corpus` turns expert traces into arrays, `posterior` holds exact inference under a sticky prior, `inference_problem`
the same as a decision problem, and `codebook` learns what each latent stands for.
"""
