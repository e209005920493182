"""A model's directory on disk: which of its files may be read, what its adapters are, its fingerprint."""
