"""The queries that an index is evaluated with, and the documents that they should find.

Gold is the field's word for what is known to be right. The gold documents of a query are the documents with the same
gold value as the query, such as the id of a fact that both of them state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from bergson_core.errors import ColumnNotFound, InvalidInput

if TYPE_CHECKING:
    from datasets import Dataset

_REQUIRED_COLUMNS: Final = ("prompt", "completion")


@dataclass(frozen=True)
class EvaluationDocument:
    """A training document whose gold value is known.

    Attributes:
        id: Identifies the document.
        text: The whole text.
        gold: Queries with this gold value should find the document.
        metadata: Further columns, by name.
    """

    id: str
    text: str
    gold: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class EvaluationQuery:
    """A question whose right documents are known.

    Attributes:
        id: Identifies the query.
        prompt: The text before the answer.
        completion: The answer, with the space in front of it if there is one.
        gold: Documents with this gold value are right for the query; "" if no document is known to be right.
    """

    id: str
    prompt: str
    completion: str
    gold: str = ""


def gold_value(value: Any) -> str:
    """Returns the value of a gold column as text, "" for None."""
    return "" if value is None else str(value)


def query_columns(gold: str) -> tuple[list[str], list[str]]:
    """Returns the columns that `read_queries` needs, and those that it reads where they are there."""
    return list(_REQUIRED_COLUMNS), ["id", gold]


def read_queries(dataset: "Dataset", gold: str) -> list[EvaluationQuery]:
    """Reads evaluation queries from a dataset.

    Args:
        dataset: Has the columns `prompt` and `completion`. The columns `id` (by default the number of the row, from 0)
            and the one named by `gold` are optional.
        gold: Name of the column with the gold values.

    Raises:
        ColumnNotFound: There is no column `prompt` or `completion`.
        InvalidInput: A prompt or completion is not text, a completion is empty, or two queries have the same id.
    """
    for column in _REQUIRED_COLUMNS:
        if column not in dataset.column_names:
            raise ColumnNotFound(
                f"the queries have no column {column!r}; they have {', '.join(dataset.column_names)}"
            )
    queries = []
    for number, row in enumerate(cast("list[dict[str, Any]]", dataset)):
        prompt, completion = row["prompt"], row["completion"]
        if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
            raise InvalidInput(f"query {number}: expected a prompt and a completion that are text")
        query_id = str(row.get("id", number))
        queries.append(EvaluationQuery(query_id, prompt, completion, gold_value(row.get(gold))))
    if len({query.id for query in queries}) < len(queries):
        raise InvalidInput("two queries have the same id; expected a different id for each")
    return queries
