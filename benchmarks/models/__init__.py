"""Models that attribution is measured on: small ones that are trained here, and a pretrained one.

`python -m benchmarks.models` makes them and says how well they know their corpora.
"""
