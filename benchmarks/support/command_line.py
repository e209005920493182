"""The argument parser of a benchmark."""

import argparse
from collections.abc import Collection


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Makes a parser that shows a module's docstring, as it is written, above the options."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parse_with_names(
    parser: argparse.ArgumentParser, known: Collection[str], kind: str
) -> argparse.Namespace:
    """Parses the command line with names as its arguments, `names` of the result: those that were given, or all.

    Args:
        parser: The parser, with all options.
        known: The names that there are. Another one ends the program.
        kind: What is named.
    """
    parser.add_argument("names", nargs="*", metavar=kind.upper(), help=f"by default all: {', '.join(known)}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown {kind} {', '.join(sorted(unknown))}; expected {', '.join(known)}")
    options.names = options.names or list(known)
    return options
