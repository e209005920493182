"""The job queue and the processes that take from it. Importing this package loads no torch."""
