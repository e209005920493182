"""The HTTP service and the command line. The web process loads no torch."""
