"""What `bergson demo` shows: invented facts, and a small model that is trained on them."""
