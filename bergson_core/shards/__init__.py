"""Rows on disk: how they are encoded, written and mapped back."""
