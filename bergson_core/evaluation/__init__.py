"""How good an index is: retrieval, unlearning, retraining without documents, beside baselines."""
