"""The run folder: configuration, manifest, metrics and checkpoints of a run."""
