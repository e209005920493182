"""The argument parser of a benchmark."""

import argparse


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Makes a parser that shows a module's docstring, as it is written, above the options."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
