"""What comes back when totals are asked for."""

from typing import Any

from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.results import QueryEcho, QueryWarning, TimingMs


class GroupTotal(ResultModel):
    """The documents with one value of a metadata column, and the sum of their scores."""

    value: Any = None
    """The value; null for documents that have none."""
    documents: int
    """Number of documents; of documents that were cut into chunks, the number of chunks."""
    sum: float
    """Sum of their scores, after the threshold. Scores have both signs, so that a sum is a balance."""
    mean: float
    """The sum, divided by the number of documents."""
    interval: tuple[float, float] | None = None
    """[low, high]: where the sum lies on average over all random projections, in nine of ten cases, for a group that
    was chosen before the sums were known. With a threshold, it is the interval of what lies beyond the threshold. Null
    where nothing does, and where the rows of the index do not show their noise."""


class InfluenceTotals(ResultModel):
    """The influence of all documents on a completion or a behaviour, summed by a metadata column."""

    index: str
    """Name of the index."""
    generation: int
    """Generation of the index that answered."""
    profile: str = "default"
    """Profile that the scores are of."""
    query: QueryEcho
    by: str
    """The metadata column."""
    threshold: float
    """The threshold that was applied to the scores."""
    groups: list[GroupTotal]
    """The groups with the largest sums, the largest first."""
    group_count: int
    """Number of groups, also of those that are not returned."""
    documents: int
    """Number of documents in all groups."""
    sum: float
    """Sum of the scores of all groups."""
    warnings: list[QueryWarning] = []
    """Probable mistakes in the query, such as a completion without its leading space."""
    partial: bool = False
    """Whether damaged shards of the index were left out."""
    timing_ms: TimingMs
    """`search` includes the scores of all documents."""
