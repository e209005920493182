"""Tokenises a list of queries, such as those of a behaviour; an error names the query that causes it."""

from collections.abc import Callable, Sequence
from typing import Final

from bergson_core.attribution.queries.chat_queries import render_chat_queries
from bergson_core.attribution.queries.query_tokenizer import QueryTokenizer, TokenizedQuery
from bergson_core.errors import BergsonError
from bergson_core.schemas.query import AttributionQuery

_TOLD_EVERY: Final = 64
"""Queries that are tokenised between two calls of `tell`."""


def tokenize_query_list(
    query_tokenizer: QueryTokenizer,
    name: str,
    queries: Sequence[AttributionQuery],
    tell: Callable[[int], object] = lambda done: None,
) -> list[TokenizedQuery]:
    """Returns the tokens of all queries of a list.

    Args:
        query_tokenizer: Tokenises queries for the model of an index.
        name: Name of the list, for errors.
        queries: The queries.
        tell: Called now and then with the number of queries before the one that was tokenised last. It may raise to
            stop the work.

    Raises:
        InvalidInput: A query is wrong for this model; the message begins with the list's name and the query's number.
        TooLong: A query has more tokens than the model takes.
    """
    alternatives = [query.alternative() for query in queries]
    others = {number: query for number, query in enumerate(alternatives) if query is not None}
    # All chats are rendered together, because starting the process for it takes most of the time.
    chats = render_chat_queries(query_tokenizer.model, [*queries, *others.values()])
    other_chats = {number: chats.get(len(queries) + place) for place, number in enumerate(others)}
    tokenized = []
    for number, query in enumerate(queries):
        try:
            tokenized.append(
                query_tokenizer.complete_and_tokenize(query, chats.get(number), other_chats.get(number))
            )
        except BergsonError as error:
            raise type(error)(f"{name}.{number}: {error}") from error
        if number % _TOLD_EVERY == 0:
            tell(number)
    return tokenized
