"""The broker is tested over a real Redis, with the fixtures of the worker's tests."""
