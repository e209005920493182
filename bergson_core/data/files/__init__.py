"""Files of documents, read as they stand: JSON, CSV, Parquet and plain text, also compressed, one file or many."""
