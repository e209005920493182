"""Documents and queries to tokens to batches: chat templates, labels, limits, chunks of long documents."""
