"""Datasets to documents: files, hub datasets and streams, read as they stand and checked value by value."""
