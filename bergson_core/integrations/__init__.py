"""Other people's systems: Ray clusters, the Hugging Face Trainer."""
