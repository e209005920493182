"""Conditions on the metadata of documents, as a query states them."""

import operator
from typing import Any, Self

from pydantic import model_validator

from bergson_core.schemas.base import Spec

Scalar = bool | int | float | str | None


class Range(Spec):
    """Numbers or texts between two bounds."""

    gte: int | float | str | None = None
    """Smallest value in the range."""
    gt: int | float | str | None = None
    """Value that all values in the range are greater than."""
    lte: int | float | str | None = None
    """Largest value in the range."""
    lt: int | float | str | None = None
    """Value that all values in the range are less than."""

    @model_validator(mode="after")
    def _require_bounds_of_one_type(self) -> Self:
        bounds = [bound for bound in (self.gte, self.gt, self.lte, self.lt) if bound is not None]
        if not bounds or len({isinstance(bound, str) for bound in bounds}) > 1:
            raise ValueError("expected at least one of gte, gt, lte, lt: all numbers, or all texts")
        return self

    def contains(self, value: Any) -> bool:
        """Returns whether `value` lies within the bounds. A value of another type than the bounds does not."""
        comparisons = (
            (self.gte, operator.ge),
            (self.gt, operator.gt),
            (self.lte, operator.le),
            (self.lt, operator.lt),
        )
        bounds = [(bound, compare) for bound, compare in comparisons if bound is not None]
        kind = str if isinstance(bounds[0][0], str) else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        return all(compare(value, bound) for bound, compare in bounds)


Condition = Scalar | tuple[Scalar, ...] | Range
"""A value, several values of which one has to match, or a range."""
