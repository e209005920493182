"""EleutherAI's bergson, the package that this project takes its methods from, on the documents of a case.

It is installed into an environment of its own and is run by its own command line, with what its documentation
recommends, on the token ids and labels that our methods get. `python -m benchmarks.upstream` prints a table.
"""
