"""Reads the bodies of requests: how large they may be, how long they may take, and what JSON they may be."""
