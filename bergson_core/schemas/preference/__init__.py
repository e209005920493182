"""Preference pairs: what they are made of, and what they go together with."""
