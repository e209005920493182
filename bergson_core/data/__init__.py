"""Datasets to documents to batches: files, hub datasets, streams, chat templates, batches of tokens."""
