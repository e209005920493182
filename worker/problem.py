"""`Problem`: an error as processes tell it to each other and to callers."""

from typing import Annotated

from pydantic import AfterValidator

from bergson_core.schemas.base import ResultModel

MAX_DETAIL_CHARACTERS = 10_000
"""Most characters of what an error says."""


def _shorten(detail: str) -> str:
    """Returns a text whose middle is left out if it is long: it may quote what the caller has sent."""
    left_out = len(detail) - MAX_DETAIL_CHARACTERS
    if left_out <= 0:
        return detail
    half = MAX_DETAIL_CHARACTERS // 2
    return f"{detail[:half]} [{left_out:,} characters left out] {detail[-half:]}"


class Problem(ResultModel):
    """An error to report to the caller; `code` is one of `bergson_core.errors`."""

    code: str
    detail: Annotated[str, AfterValidator(_shorten)]
