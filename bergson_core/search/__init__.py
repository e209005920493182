"""Rows found for a query: candidates, exact scores, profiles, metadata filters, measured recall, significance."""
