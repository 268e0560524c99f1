"""Action abstractions: latents over lines of code, options in known MDPs, and the pruning of either."""
