"""Regular expressions of strangers: `(a+)+$` takes time exponential in a name's length. See `bounded`."""

from collections.abc import Sequence
from typing import Final, Literal

from bergson_core.errors import InvalidInput
from bergson_core.utils import sandbox

LIMIT_S: Final = 10
How = Literal["search", "match", "fullmatch"]
_FIND: Final = """
import json, re, sys
wanted, names = json.load(sys.stdin)
found = [[name for name in names if getattr(re, how)(pattern, name)] for how, pattern in wanted]
json.dump(found, sys.stdout)
"""


def matching_names(pattern: str, names: Sequence[str]) -> set[str]:
    """The names in which `pattern` is found. Raises `InvalidInput` where that takes more than `LIMIT_S` seconds."""
    return set(check_expressions("modules", [("search", pattern)], names)[0])


def check_expressions(
    what: str, expressions: Sequence[tuple[How, str]], names: Sequence[str]
) -> list[list[str]]:
    """The names that each expression finds. Raises `InvalidInput` where all take more than `LIMIT_S` seconds."""
    said = f"{what}: {', '.join(repr(pattern) for _, pattern in expressions)}"[:500]
    try:
        return sandbox.run_sandboxed(_FIND, [expressions, names], LIMIT_S)
    except TimeoutError:
        raise InvalidInput(
            f"{said} takes more than {LIMIT_S} s on {len(names)} names; expected an expression without "
            "repeats within repeats"
        ) from None
    except ValueError as error:
        raise InvalidInput(f"{said} cannot be searched for: {error}") from None
