"""How the scores of random documents are distributed, which the scores of the results are compared with."""

from bergson_core.schemas.base import ResultModel


class BackgroundScores(ResultModel):
    """A histogram of the scores of random documents of the index for a query.

    These are the documents that `percentile`, `strength` and the notice compare with: up to 4,096 of them.
    """

    edges: list[float]
    """Bounds of the bins, which are of the same width: one more than there are bins. The first is the lowest score, and
    the last is the highest."""
    counts: list[int]
    """Number of documents in each bin."""
