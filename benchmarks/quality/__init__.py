"""What each choice of rows, modules and scores is worth, on corpora of real text and models that are trained again.

`python -m benchmarks.quality` measures every method with every measure, for each pair of a corpus and a model, and
writes a table and a JSON file of all numbers with their intervals.
"""
