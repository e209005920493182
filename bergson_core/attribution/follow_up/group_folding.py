"""Folds the results of a query into groups: near-duplicates, or documents with the same value of a metadata column.

The 1,000 best documents of a direction are folded (`GROUP_DEPTH`), whatever `top_k` is, so that the sum of a group does
not depend on how many groups are asked for. In an index of no more documents it is the sum over all of them. Each group
is shown by its best document.
"""

import json
from collections.abc import Hashable, Sequence
from typing import Any, Final

from bergson_core.attribution.answering import QueryAnswerer
from bergson_core.attribution.document_selection import DocumentSelector, RowLocation
from bergson_core.attribution.follow_up.answer_steps import Steps
from bergson_core.attribution.follow_up.group_intervals import FoldedGroup, GroupIntervals, GroupRanking
from bergson_core.attribution.follow_up.row_cosines import label_components, near_pairs
from bergson_core.errors import InvalidInput
from bergson_core.schemas.answer_parts.groups import GroupMember, ResultGroup
from bergson_core.schemas.query import GROUP_DEPTH, NEAR_DUPLICATES, AttributionQuery
from bergson_core.schemas.results import Answer, ResultRow
from bergson_core.utils.background import iterate_while_running

NEAR_DUPLICATE_COSINE: Final = 0.95
"""Smallest cosine of the rows of two documents that count as near-duplicates."""


def fold_results(
    query: AttributionQuery, answer: Answer, answerer: QueryAnswerer, selector: DocumentSelector
) -> Steps[Answer]:
    """Returns the answer with one result for each group, and yields while groups are formed.

    Args:
        query: The query, with a `group_by` that folds.
        answer: The answer to the query as it is searched for (`AttributionQuery.for_search`).
        answerer: Answers the queries of the index.
        selector: Selects documents of the index.

    Raises:
        InvalidInput: The index does not keep the column.
    """
    require_groupable(query, selector)
    lists: dict[str, list[ResultRow] | None] = {"results": answer.results, "opponents": answer.opponents}
    intervals = GroupIntervals(answerer, query, answer)
    yield
    for name, rows in lists.items():
        if rows is not None:
            lists[name] = yield from _fold(query, rows, name == "opponents", selector, intervals)
    return answer.model_copy(update=lists)


def require_groupable(query: AttributionQuery, selector: DocumentSelector) -> None:
    """Raises `InvalidInput` if the index has no metadata column of the name in `group_by`."""
    columns = selector.manifest.spec.columns.metadata
    if query.group_by != NEAR_DUPLICATES and query.group_by not in columns:
        available = f"it keeps {', '.join(columns)}" if columns else "it keeps none"
        raise InvalidInput(
            f"group_by: expected 'document', {NEAR_DUPLICATES!r} or a metadata column, got "
            f"{query.group_by!r}; of the columns {available}"
        )


def _fold(
    query: AttributionQuery,
    rows: Sequence[ResultRow],
    is_lowest: bool,
    selector: DocumentSelector,
    intervals: GroupIntervals,
) -> Steps[list[ResultRow]]:
    """Returns the best rows of the best groups of one direction, which are those of the lowest sums or the highest."""
    has_all_documents = len(rows) < GROUP_DEPTH
    located = selector.locate([row.id for row in rows])
    rows = [row for row in rows if row.id in located]  # others were taken down meanwhile
    if not rows:
        return []
    locations = [located[row.id] for row in rows]
    values = yield from iterate_while_running(lambda: _group_values(query, locations, selector), None)
    members: dict[Hashable, list[int]] = {}
    for number, value in enumerate(values):
        members.setdefault(value, []).append(number)
    groups = []
    for value, numbers in members.items():
        own = [rows[number] for number in numbers]
        group = ResultGroup.of(_shown(query, value), [_member(row) for row in own])
        groups.append(FoldedGroup(group, own, [locations[number] for number in numbers]))
    groups.sort(key=lambda folded: folded.group.score, reverse=not is_lowest)
    ranking, best = GroupRanking(len(groups), has_all_documents, is_lowest), groups[: query.top_k]
    measured = yield from intervals.measure(best, ranking)
    return [
        folded.rows[0].model_copy(update={"rank": rank, "group": group})
        for rank, (folded, group) in enumerate(zip(best, measured, strict=True), start=1)
    ]


def _group_values(
    query: AttributionQuery, locations: Sequence[RowLocation], selector: DocumentSelector
) -> list[Hashable]:
    """Returns for each document what it has in common with the others of its group."""
    if query.group_by == NEAR_DUPLICATES:
        searcher, manifest = selector.searcher, selector.manifest
        pairs = near_pairs(searcher, manifest, locations, query.profile, NEAR_DUPLICATE_COSINE)
        return label_components(pairs).tolist()
    values = (selector.read(location)["metadata"].get(query.group_by) for location in locations)
    return [json.dumps(value, sort_keys=True) for value in values]


def _shown(query: AttributionQuery, value: Any) -> Any:
    return None if query.group_by == NEAR_DUPLICATES else json.loads(value)


def _member(row: ResultRow) -> GroupMember:
    return GroupMember(id=row.id, score=row.score)
