"""An open index answers: influence of documents and tokens, scores of a corpus, unlearning, near-duplicates."""
