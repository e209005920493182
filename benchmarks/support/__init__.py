"""Helpers that several benchmarks share; nothing in this folder is a benchmark."""
