"""How large a request's body may be, by route.

A query needs little, and a build with its documents in the body needs much. A route that `BODY_LIMITS` does not name
takes a small body only. No body may be larger than the setting `max_body_bytes`.
"""

from typing import Final

import numpy as np

from service.settings import ServiceSettings

_MIB: Final = 2**20
_UP_TO_SETTING: Final = 2**63

BODY_LIMITS: Final[dict[str, int]] = {
    "attribute": 8 * _MIB,  # a prompt and a completion of a million characters each
    "attribute_batch": 16 * _MIB,
    "attribute_indexes": 8 * _MIB,
    "influence_totals": 8 * _MIB,
    "make_link": 8 * _MIB,
    "build_index": _UP_TO_SETTING,
    "estimate_index": _UP_TO_SETTING,
    "append_documents": _UP_TO_SETTING,
    "fit_profile": _UP_TO_SETTING,
    "create_behaviour": _UP_TO_SETTING,
    "preview_unlearning": 16 * _MIB,
}
"""Maps the name of a route to the largest size of its body, in bytes."""
_DEFAULT_LIMIT: Final = _MIB // 16
MAX_ELEMENTS: Final = 1_000_000
"""Most commas, lists and objects of a body, outside its texts. In memory, each takes up to a hundred bytes."""

_NO_STRUCTURE: Final = bytes(set(range(256)) - set(b'",[{'))
_PIECE_BYTES: Final = 2**20


def max_body_bytes(route_name: str, settings: ServiceSettings) -> int:
    """Returns the largest size of the body of a route, in bytes."""
    return min(settings.max_body_bytes, BODY_LIMITS.get(route_name, _DEFAULT_LIMIT))


def has_too_many_elements(body: bytes) -> bool:
    """Returns whether a JSON text has more than `MAX_ELEMENTS`, which are counted without parsing it."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") <= MAX_ELEMENTS:
        return False
    structure = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_STRUCTURE)
    return _count_outside_texts(structure) > MAX_ELEMENTS


def _count_outside_texts(structure: bytes) -> int:
    """Returns the number of bytes other than quotes that are not between an odd quote and the next one."""
    count, is_inside = 0, 0
    for start in range(0, len(structure), _PIECE_BYTES):
        is_quote = np.frombuffer(structure[start : start + _PIECE_BYTES], dtype=np.uint8) == ord('"')
        # The sum wraps around at 256, and stays odd inside of texts.
        inside = (np.cumsum(is_quote, dtype=np.uint8) + np.uint8(is_inside)) % 2
        count += int(np.count_nonzero(~is_quote & (inside == 0)))
        is_inside = int(inside[-1])
    return count
