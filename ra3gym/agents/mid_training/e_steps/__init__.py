"""E-steps: infer the latents of expert traces, by name or from a class of your own."""
