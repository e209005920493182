"""Groups of documents of an open index: near-duplicates, and documents that are unlearned together."""
