"""Fast ways for models whose layers are known: decoders, graphs, packed weights, shared prompts."""
