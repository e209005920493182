"""Totals: the influence of all documents on what a model says, summed by a metadata column."""
