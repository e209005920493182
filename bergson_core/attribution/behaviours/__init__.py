"""Behaviours of an open index: their creation, and the vectors by which they are asked for."""
