"""Several checkpoints of a training run as one model, whose weights are exchanged."""
