"""Several checkpoints of a training run are loaded as one model."""
