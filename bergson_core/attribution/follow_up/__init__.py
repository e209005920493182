"""What is done to an answer after the search, step by step: candidates are scored again by their whole gradients."""
