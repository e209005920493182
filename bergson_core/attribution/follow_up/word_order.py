"""Compares the results of a query with the words of the documents: which state the completion, and the order by BM25.

A document that states the completion need not have moved the model to say it, nor the other way round. So each result
gets both, and `order` decides which of the two the results are in. `fused` adds up the reciprocal ranks of both orders,
as far as a document is among the best of each.

Source of the fusion: Cormack, Clarke & Büttcher, Reciprocal Rank Fusion (SIGIR 2009), with its constant of 60.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch

from bergson_core.attribution.answering import QueryAnswerer
from bergson_core.attribution.document_selection import DocumentSelector, RowLocation
from bergson_core.attribution.follow_up.answer_steps import Steps, with_timing
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.schemas.answer_parts.words import WordMatch
from bergson_core.schemas.query import AttributionQuery, Direction
from bergson_core.schemas.results import Answer, QueryEcho, ResultRow
from bergson_core.search.searcher import Searcher, SearchRequest
from bergson_core.search.words.bm25 import WordRanking, rank_by_words
from bergson_core.search.words.text_words import (
    Statement,
    chat_text,
    message_text,
    split_words,
    stored_text,
)
from bergson_core.search.words.word_index import WordIndex
from bergson_core.storage.document_table import read_whole_id
from bergson_core.tokens.batching import BUDGET_TOKENS
from bergson_core.tokens.tokenization import Tokens

_FUSION_CONSTANT: Final = 60


@dataclass(frozen=True)
class _Question:
    """What a query asks for in words.

    Attributes:
        text: The prompt and the completion; of a chat, what all messages say.
        statement: What is explained: the completion, or its span.
    """

    text: str
    statement: Statement

    @classmethod
    def of(cls, query: AttributionQuery, echo: QueryEcho) -> "_Question":
        """Returns the question of a query; `echo` has the completion that the model generated."""
        completion = echo.completion or ""
        explained = completion if query.explained_text is None else query.explained_text
        text = (echo.prompt or "") + completion
        if query.messages is not None:
            text, explained = chat_text(query.messages), message_text(query.messages[-1])
        return cls(text, Statement(explained if query.span is None else explained[slice(*query.span)]))


class WordOrder:
    """Adds the words to the results of an index, and orders results by them. For use by one thread.

    Args:
        root: Directory of the index.
        answerer: Answers the queries of the index.
        searcher: The shards of the index.
    """

    def __init__(self, root: Path, answerer: QueryAnswerer, searcher: Searcher) -> None:
        self._root, self._answerer, self._searcher = root, answerer, searcher
        self._selector = DocumentSelector(answerer.manifest, answerer.collector.model, searcher)

    def apply(self, query: AttributionQuery, tokens: Sequence[Tokens], answer: Answer) -> Steps[Answer]:
        """Returns the answer with the words of each result, and with the results in the order of the query.

        The words of the documents are read, and kept on disk, when the first query asks for them.

        Args:
            query: The query.
            tokens: Tokens of the query (`TokenizedQuery.weighted_tokens`).
            answer: The answer to the query as it is searched for (`AttributionQuery.for_search`), with the results in
                the order of their influence.
        """
        return with_timing(self._apply(query, tokens, answer), answer, "words")

    def _apply(self, query: AttributionQuery, tokens: Sequence[Tokens], answer: Answer) -> Steps[Answer]:
        yield from self._words.prepare()
        question = _Question.of(query, answer.query)
        ranking = yield from rank_by_words(
            self._words.by_shard,
            self._searcher.visible.masks(),
            self._searcher.allowed_rows(query.filter),
            split_words(question.text),
        )
        lists: dict[str, list[ResultRow] | None] = {"results": answer.results, "opponents": answer.opponents}
        for name, rows in lists.items():
            if rows is None:
                continue
            if query.order != "influence":
                direction: Direction = "proponents" if name == "results" else "opponents"
                chosen = self._choose(query, ranking, rows)
                scored = self._score(query.model_copy(update={"direction": direction}), tokens, chosen)
                rows = _keep_intervals(scored, rows) if query.order == "fused" else scored
                yield
            lists[name] = self._add_words(rows, ranking, question.statement)
        return answer.model_copy(update=lists)

    @cached_property
    def _words(self) -> WordIndex:
        is_chat = self._answerer.manifest.spec.columns.messages is not None
        return WordIndex(self._root, self._searcher.shards, is_chat=is_chat)

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """The number of the first document of each shard among those of all shards that are open."""
        return np.cumsum([0, *(shard.entry.rows for shard in self._searcher.shards)])

    def _number(self, location: RowLocation) -> int:
        return int(self._first_rows[location[0]]) + location[1]

    def _location(self, number: int) -> RowLocation:
        shard_number = int(np.searchsorted(self._first_rows, number, side="right")) - 1
        return shard_number, number - int(self._first_rows[shard_number])

    def _choose(
        self, query: AttributionQuery, ranking: WordRanking, rows: Sequence[ResultRow]
    ) -> list[RowLocation]:
        """Returns where the results of a direction are, in the order of the query.

        Args:
            query: The query.
            ranking: The order of all documents by their words.
            rows: The best documents by influence.
        """
        depth = query.search_depth
        rows_to_look_at = int(self._first_rows[-1]) if query.group_by else depth
        best_by_words = (self._location(int(number)) for number in ranking.best(rows_to_look_at))
        by_words = self._first_of_each_document(query, best_by_words, depth)
        if query.order == "words":
            return list(by_words.values())[: query.top_k]
        located = self._selector.locate([row.id for row in rows])
        by_influence = self._first_of_each_document(
            query, (located[row.id] for row in rows if row.id in located), depth
        )
        scores: dict[object, float] = {}
        for order in (by_influence, by_words):
            for rank, key in enumerate(order, start=1):
                scores[key] = scores.get(key, 0.0) + 1 / (_FUSION_CONSTANT + rank)
        fused = sorted(scores, key=lambda key: -scores[key])[: query.top_k]
        return [(by_words | by_influence)[key] for key in fused]

    def _first_of_each_document(
        self, query: AttributionQuery, locations: Iterable[RowLocation], count: int
    ) -> dict[object, RowLocation]:
        """Returns the first locations, at most `count`; with `group_by` the first of each document, by its id."""
        first: dict[object, RowLocation] = {}
        for location in locations:
            if len(first) == count:
                break
            key: object = location
            if query.group_by:
                shard_number, offset = location
                key = read_whole_id(self._searcher.shards[shard_number].documents, offset)
            first.setdefault(key, location)
        return first

    def _score(
        self, query: AttributionQuery, tokens: Sequence[Tokens], locations: Sequence[RowLocation]
    ) -> list[ResultRow]:
        """Returns the documents at these locations as results, in this order, with their scores of the index."""
        if not locations:
            return []
        rows, _ = collect_rows(self._answerer.collector, tokens, BUDGET_TOKENS)
        row = torch.from_numpy(rows.sum(0)).reshape(len(self._answerer.collector.slices), -1)
        request = SearchRequest.from_query(query)
        found = self._searcher.score_rows(row, request, locations)
        return self._answerer.make_rows(found, "proponents", request) or []

    def _add_words(
        self, rows: Sequence[ResultRow], ranking: WordRanking, statement: Statement
    ) -> list[ResultRow]:
        """Returns results with their words, without those that were taken down meanwhile."""
        located = self._selector.locate([row.id for row in rows])
        is_chat = self._answerer.manifest.spec.columns.messages is not None
        results: list[ResultRow] = []
        for row in rows:
            if row.id not in located:
                continue
            document, number = self._selector.read(located[row.id]), self._number(located[row.id])
            is_chat_pair = bool(document.get("is_chat"))
            text = stored_text(document["prompt"], document["completion"], is_chat=is_chat or is_chat_pair)
            words = WordMatch(
                rank=ranking.rank(number),
                score=float(ranking.scores[number]),
                states=statement.is_stated_by(text),
            )
            results.append(row.model_copy(update={"rank": len(results) + 1, "words": words}))
        return results


def _keep_intervals(rows: Sequence[ResultRow], by_influence: Sequence[ResultRow]) -> list[ResultRow]:
    """Returns rows with the intervals and strengths of those that were among the best by influence.

    Their scores are a reason for which they were chosen, unlike those of documents that only their words have chosen.
    """
    known = {row.id: row.model_dump(include={"interval", "strength"}) for row in by_influence}
    return [row.model_copy(update=known.get(row.id, {})) for row in rows]
