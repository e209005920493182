"""The site of docs/ for MkDocs: its hooks, and the reference pages that are made from the code."""
