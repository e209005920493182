"""Previews of unlearning: which documents are chosen and which queries are watched, and what changes."""
