"""Queries that are refined by the exact Gauss-Newton matrix: whether that is worth what it costs."""
