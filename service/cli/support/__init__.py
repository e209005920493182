"""Helpers that the commands share: options, console output, tables of results, and the processes of the service."""
