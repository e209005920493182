"""The HTTP service, its Python client and the command line."""
