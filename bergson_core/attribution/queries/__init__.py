"""A query before the search: its tokens, its generated completion, and its isolation from others that fail."""
