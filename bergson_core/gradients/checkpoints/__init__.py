"""Rows of several checkpoints: each has its own normalizers and projections, and its own part of a row."""
