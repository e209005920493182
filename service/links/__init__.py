"""Answers that are kept under a link: their files, and what of an answer may still be shown."""
