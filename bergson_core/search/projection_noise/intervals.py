"""Intervals of scores: where a score would lie on average over all projections.

Another seed of the projections gives another row and another score. An interval is meant to hold the mean of these
scores in `LEVEL` of all cases: it reaches from the score to both sides by the standard error (`score_noise`) times a
quantile of Student's distribution, whose degrees of freedom say how many lines the standard error is estimated from.

The first results of many rows are the first by chance too: of a thousand rows without any influence, the best one lies
three standard errors above its mean. So the end of the interval that faces the other rows is further away, by the
quantile that one row in a thousand exceeds and not one in twenty: for the result of rank r among N rows, r / N of the
probability remains. On average, nine of ten intervals of the results that are shown then hold their means, whatever
the scores of all rows are.

Source: Benjamini and Yekutieli, "False discovery rate-adjusted multiple confidence intervals for selected parameters",
2005, for the intervals of what was chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

LEVEL: Final = 0.9
"""Share of intervals that are meant to hold the mean over all projections."""
Interval = tuple[float, float]
"""(low, high)."""


@dataclass(frozen=True)
class ScoreError:
    """How much a score varies with the projections.

    Attributes:
        standard_error: Its standard deviation over projections.
        freedom: Degrees of freedom of the estimate of this number.
        largest: The largest score that there can be: 1 for a cosine.
    """

    standard_error: float
    freedom: float
    largest: float

    def interval(self, score: float) -> Interval:
        """Returns the interval of a score that was not chosen by its size."""
        return self._interval(score, (1 - LEVEL) / 2, (1 - LEVEL) / 2)

    def interval_of_result(self, score: float, rank: int, rows: int, *, is_lowest: bool = False) -> Interval:
        """Returns the interval of a score that is the `rank`-th highest of those of `rows` rows.

        Args:
            score: The score.
            rank: Its rank, from 1.
            rows: Number of rows among which it was found.
            is_lowest: Whether the rank is that among the lowest scores.
        """
        outside = (1 - LEVEL) / 2
        chosen = outside * min(1.0, rank / max(1, rows))
        return self._interval(score, *((outside, chosen) if is_lowest else (chosen, outside)))

    def interval_of_group(
        self,
        score: float,
        rank: int,
        groups: int,
        chosen: Sequence[Interval] | None = None,
        *,
        is_lowest: bool = False,
    ) -> Interval:
        """Returns the interval of a sum that is the `rank`-th highest of those of `groups` groups.

        Where the members of the groups were chosen by their scores too, their errors are in their favour together,
        however many they are. Then the end that faces the other groups is at least as far away as the sum of the ends
        of the members, which allow for how each of them was chosen.

        Args:
            score: The sum.
            rank: Its rank, from 1.
            groups: Number of groups.
            chosen: The members' intervals as results, where they were chosen by their scores; None otherwise.
            is_lowest: Whether ranks are those among the lowest sums.
        """
        low, high = self.interval_of_result(score, rank, groups, is_lowest=is_lowest)
        if chosen is None:
            return low, high
        end = math.fsum(interval[1 if is_lowest else 0] for interval in chosen)
        return (low, max(high, end)) if is_lowest else (min(low, end), high)

    def _interval(self, score: float, below: float, above: float) -> Interval:
        """Returns the interval outside of which the mean lies with these probabilities."""
        low = score - self.standard_error * student_quantile(1 - below, self.freedom)
        high = score + self.standard_error * student_quantile(1 - above, self.freedom)
        return max(low, min(score, -self.largest)), min(high, max(score, self.largest))


def student_quantile(probability: float, freedom: float) -> float:
    """Returns a quantile of Student's distribution, for one degree of freedom or more.

    At a probability of 0.95 the error is 5 % with one degree of freedom, 0.3 % with two, and less than 0.1 % from three
    on. Further out it takes more of them: at 0.99999, the error is 6 % with five and less than 0.2 % from ten on.

    Args:
        probability: The probability, from 0.5 to below 1.
        freedom: Degrees of freedom; fewer than one count as one.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    nu = max(1.0, freedom)
    return z + math.fsum(term / nu**power for power, term in enumerate(terms, start=1))
