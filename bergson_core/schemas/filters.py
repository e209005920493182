"""Conditions on a document's metadata, as a query states them; `filters` finds the rows that meet them. No torch."""

import operator
from typing import Any, Self

from pydantic import model_validator

from bergson_core.schemas.base import Spec

Scalar = bool | int | float | str | None


class Range(Spec):
    """Numbers or texts between two bounds."""

    gte: int | float | str | None = None
    gt: int | float | str | None = None
    lte: int | float | str | None = None
    lt: int | float | str | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        bounds = [bound for bound in (self.gte, self.gt, self.lte, self.lt) if bound is not None]
        if not bounds or len({isinstance(bound, str) for bound in bounds}) > 1:
            raise ValueError("expected at least one of gte, gt, lte, lt: all numbers, or all texts")
        return self

    def holds(self, value: Any) -> bool:
        """Whether `value` lies between the bounds; what cannot be compared with them does not."""
        bounds = (
            (self.gte, operator.ge),
            (self.gt, operator.gt),
            (self.lte, operator.le),
            (self.lt, operator.lt),
        )
        given = [(bound, compare) for bound, compare in bounds if bound is not None]
        kind = str if isinstance(given[0][0], str) else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        return all(compare(value, bound) for bound, compare in given)


Condition = Scalar | tuple[Scalar, ...] | Range
"""A value, several of which one has to match, or a range."""
