"""Uses of an index, from a question to a measured result, on data and models that the examples make themselves."""
