"""One file a resource; each view says what it calls and nothing more."""
