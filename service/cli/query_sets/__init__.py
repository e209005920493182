"""Commands about sets of queries that are kept with an index."""
