"""The words of the documents: which of them state a text, and their order by BM25."""
