"""Behaviours: named sets of queries that are kept with an index, as they are asked for and as they are shown."""
