"""`ra3gym/TraceInference-v0`: choose one latent for each line of an expert trace."""
