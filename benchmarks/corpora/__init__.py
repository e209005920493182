"""Corpora that attribution is measured on: real texts from packages that any machine can install, and invented facts.

`python -m benchmarks.corpora` makes them and prints a table of them. Equal arguments give equal bytes, as long as the
packages that the texts come from have the same version; the digest of a corpus tells whether they are.
"""
