"""Environments in which a policy writes a Python program: by tokens, by latents, or by comments."""
