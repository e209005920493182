"""JSON files that end with the sha256 of their own content, so that a changed bit does not go unnoticed.

    {
     "name": "facts",
     "sha256": "<of everything before, without this field and `created_at`>"
    }

The time at which a file was made is left out, so that it is all in which two builds of the same documents differ.
The seal guards against faults of a disk, not against people: a file without it is read as it stands. Older releases
wrote none, and a program that writes the file in another form drops it.
"""

import re
from hashlib import sha256
from typing import Final

SEAL_FIELD: Final = "sha256"
_TIME: Final = re.compile(rb'\n "created_at": "[^"]*",')
_SEALED: Final = re.compile(rb'(.*),\n "sha256": "([0-9a-f]{64})"\n\}', re.DOTALL)


def seal(text: str) -> bytes:
    """Returns the text of a JSON object, of several lines, with its sha256 as the last field."""
    content = text.encode()
    digest = _digest(content)
    return content.removesuffix(b"\n}") + f',\n "{SEAL_FIELD}": "{digest}"\n}}'.encode()


def unseal(content: bytes) -> bytes:
    """Returns the JSON object that was sealed, or `content` itself if it has no seal.

    Raises:
        ValueError: The content is not what was sealed.
    """
    match = _SEALED.fullmatch(content)
    if match is None:
        return content
    sealed = match[1] + b"\n}"
    if _digest(sealed) != match[2].decode():
        raise ValueError(
            f"it was altered: its sha256 is not the one in its last field, {SEAL_FIELD!r}; restore it from a copy, or "
            "remove that field if the file was changed on purpose"
        )
    return sealed


def _digest(content: bytes) -> str:
    return sha256(_TIME.sub(b"", content)).hexdigest()
