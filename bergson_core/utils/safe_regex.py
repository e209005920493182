"""Matches regular expressions from untrusted sources against names, within a time limit.

An expression such as `(a+)+$` takes time that is exponential in the length of a name.
"""

from collections.abc import Sequence
from typing import Final, Literal

from bergson_core.errors import InvalidInput
from bergson_core.utils import sandbox

TIME_LIMIT_S: Final = 10
MatchMode = Literal["search", "match", "fullmatch"]
"""Name of the function of `re` that decides whether an expression matches a name."""
_PROGRAM: Final = """
import json, re, sys
expressions, names = json.load(sys.stdin)
matches = [[name for name in names if getattr(re, mode)(pattern, name)] for mode, pattern in expressions]
json.dump(matches, sys.stdout)
"""


def find_matching_names(pattern: str, names: Sequence[str]) -> set[str]:
    """Returns the names that contain a match of `pattern`.

    Raises:
        InvalidInput: The pattern is no regular expression, or takes more than `TIME_LIMIT_S` seconds.
    """
    return set(match_expressions("modules", [("search", pattern)], names)[0])


def match_expressions(
    what: str, expressions: Sequence[tuple[MatchMode, str]], names: Sequence[str]
) -> list[list[str]]:
    """Returns the names that each expression matches.

    Args:
        what: Where the expressions come from, for messages.
        expressions: How to match, and the pattern.
        names: The names to match.

    Raises:
        InvalidInput: A pattern is no regular expression, or all of them together take more than `TIME_LIMIT_S` seconds.
    """
    description = f"{what}: {', '.join(repr(pattern) for _, pattern in expressions)}"[:500]
    try:
        return sandbox.run_sandboxed(_PROGRAM, [expressions, names], TIME_LIMIT_S)
    except TimeoutError:
        raise InvalidInput(
            f"{description} takes more than {TIME_LIMIT_S} s on {len(names)} names; expected an expression without "
            "repeats within repeats"
        ) from None
    except ValueError as error:
        raise InvalidInput(f"{description} cannot be searched for: {error}") from None
