"""Folds the results of a query into groups: near-duplicates, or documents with the same value of a metadata column.

The 1,000 best documents of a direction are folded (`GROUP_DEPTH`), whatever `top_k` is, so that the sum of a group does
not depend on how many groups are asked for. In an index of no more documents it is the sum over all of them. Each group
is shown by its best document.
"""

import json
from collections.abc import Hashable, Sequence
from typing import Any, Final

from bergson_core.attribution.document_selection import DocumentSelector, RowLocation
from bergson_core.attribution.follow_up.answer_steps import Steps
from bergson_core.attribution.follow_up.row_cosines import label_components, row_cosines
from bergson_core.errors import InvalidInput
from bergson_core.schemas.answer_parts.groups import GroupMember, ResultGroup
from bergson_core.schemas.query import NEAR_DUPLICATES, AttributionQuery
from bergson_core.schemas.results import Answer, ResultRow
from bergson_core.utils.background import iterate_while_running

NEAR_DUPLICATE_COSINE: Final = 0.95
"""Smallest cosine of the rows of two documents that count as near-duplicates."""


def fold_results(query: AttributionQuery, answer: Answer, selector: DocumentSelector) -> Steps[Answer]:
    """Returns the answer with one result for each group, and yields while groups are formed.

    Args:
        query: The query, with a `group_by` that folds.
        answer: The answer to the query as it is searched for (`AttributionQuery.for_search`).
        selector: Selects documents of the index.

    Raises:
        InvalidInput: The index does not keep the column.
    """
    require_groupable(query, selector)
    lists: dict[str, list[ResultRow] | None] = {"results": answer.results, "opponents": answer.opponents}
    for (name, rows), sign in zip(lists.items(), (1, -1), strict=True):
        if rows is not None:
            lists[name] = yield from _fold(query, rows, sign, selector)
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
    query: AttributionQuery, rows: Sequence[ResultRow], sign: int, selector: DocumentSelector
) -> Steps[list[ResultRow]]:
    """Returns the best rows of the best groups of one direction, whose scores times `sign` are highest."""
    located = selector.locate([row.id for row in rows])
    rows = [row for row in rows if row.id in located]  # others were taken down meanwhile
    if not rows:
        return []
    locations = [located[row.id] for row in rows]
    values = yield from iterate_while_running(lambda: _group_values(query, locations, selector), None)
    members: dict[Hashable, list[int]] = {}
    for number, value in enumerate(values):
        members.setdefault(value, []).append(number)
    groups = [
        (
            rows[numbers[0]],
            ResultGroup.of(_shown(query, value), [_member(rows[number]) for number in numbers]),
        )
        for value, numbers in members.items()
    ]
    groups.sort(key=lambda group: -sign * group[1].score)
    return [
        row.model_copy(update={"rank": rank, "group": group})
        for rank, (row, group) in enumerate(groups[: query.top_k], start=1)
    ]


def _group_values(
    query: AttributionQuery, locations: Sequence[RowLocation], selector: DocumentSelector
) -> list[Hashable]:
    """Returns for each document what it has in common with the others of its group."""
    if query.group_by == NEAR_DUPLICATES:
        cosines = row_cosines(selector.searcher, selector.manifest, locations, query.profile)
        return label_components(cosines >= NEAR_DUPLICATE_COSINE).tolist()
    values = (selector.read(location)["metadata"].get(query.group_by) for location in locations)
    return [json.dumps(value, sort_keys=True) for value in values]


def _shown(query: AttributionQuery, value: Any) -> Any:
    return None if query.group_by == NEAR_DUPLICATES else json.loads(value)


def _member(row: ResultRow) -> GroupMember:
    return GroupMember(id=row.id, score=row.score)
