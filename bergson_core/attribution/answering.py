"""Answers batches of queries: their tokens, their gradients, the search, and what an `Answer` says of its results.

Legend: q queries, D numbers of a row.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.attribution.behaviours.behaviours import Behaviours
from bergson_core.attribution.queries.chat_queries import render_chat_queries
from bergson_core.attribution.queries.checkpoint_losses import losses_between, not_learned_warnings
from bergson_core.attribution.queries.contrast_warnings import unlikely_warnings
from bergson_core.attribution.queries.isolation import run_or_error, run_together_or_alone
from bergson_core.attribution.queries.query_rows import collect_query_rows
from bergson_core.attribution.queries.query_tokenizer import QueryTokenizer, TokenizedQuery
from bergson_core.attribution.token_influence import ScoreDecomposer
from bergson_core.errors import BergsonError
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.schemas.answer_parts.background import BackgroundScores
from bergson_core.schemas.build_parts.checkpoints import require_between
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import (
    Answer,
    QueryEcho,
    QueryWarning,
    ResultRow,
    TimingMs,
    TokenInfluence,
)
from bergson_core.search.background_sample import percentiles, score_histogram
from bergson_core.search.measuring.significance import significance_notice, strengths_of
from bergson_core.search.profile import require_profile
from bergson_core.search.searcher import Searcher, SearchRequest, SearchResult
from bergson_core.storage.damaged_shards import damaged_shards_error
from bergson_core.storage.layout import DEFAULT_PROFILE
from bergson_core.storage.manifest import Manifest, NoticeEntry
from bergson_core.tokens.batching import BUDGET_TOKENS
from bergson_core.tokens.chat_template import RenderedChat


@dataclass(frozen=True)
class _AskedQuery:
    """A query that the search is about to answer, and what its answer says of the query itself."""

    query: AttributionQuery
    echo: QueryEcho
    warnings: Sequence[QueryWarning] = ()


@dataclass(frozen=True)
class _AnswerResults:
    """The parts of an answer that come from the search. A list is None for a direction that was not asked for."""

    proponents: list[ResultRow] | None
    opponents: list[ResultRow] | None
    notice: str | None
    background: BackgroundScores | None


@dataclass(frozen=True)
class QueryAnswerer:
    """Answers the queries of an open index, without verifying results.

    Attributes:
        index: Name of the index, for the answers to queries that name none.
        manifest: Manifest of the index.
        collector: Computes the gradient rows of queries.
        searcher: The shards of the index, open for search.
        query_tokenizer: Tokenises queries.
        behaviours: The behaviours of the index.
        score_decomposer: Splits the scores of results by token.
    """

    index: str
    manifest: Manifest
    collector: RowCollector
    searcher: Searcher
    query_tokenizer: QueryTokenizer
    behaviours: Behaviours
    score_decomposer: ScoreDecomposer

    def answer(self, queries: Sequence[AttributionQuery]) -> list[Answer | BergsonError]:
        """Returns for each query its answer, or the error that this query alone has caused."""
        started = time.perf_counter()
        outcomes: dict[int, Answer | BergsonError] = {}
        tokenized: dict[int, TokenizedQuery] = {}
        alternatives = {
            len(queries) + number: alternative
            for number, query in enumerate(queries)
            if (alternative := query.alternative()) is not None
        }
        chats = self._render_chats(dict(enumerate(queries)) | alternatives)
        for number, query in enumerate(queries):
            if query.behaviour is not None:
                outcomes[number] = run_or_error(partial(self._answer_behaviour, query, started))
                continue
            rendered = chats.get(number), chats.get(len(queries) + number)
            prepared = run_or_error(partial(self._prepare, query, *rendered))
            if isinstance(prepared, BergsonError):
                outcomes[number] = prepared
            else:
                tokenized[number] = prepared
        if tokenized:
            answers = run_together_or_alone(
                list(tokenized.values()), lambda items: self._answer_tokenized(items, started)
            )
            outcomes |= zip(tokenized, answers, strict=True)
        return [outcomes[number] for number in range(len(queries))]

    def search(self, rows: Float[Tensor, "q D"], requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Returns what the search finds for each raw gradient row."""
        return self.searcher.search(rows.reshape(len(rows), len(self.collector.slices), -1), requests)

    def make_rows(
        self,
        result: SearchResult,
        direction: Literal["proponents", "opponents"],
        request: SearchRequest,
    ) -> list[ResultRow] | None:
        """Returns what was found in a direction as the rows of an answer, or None where it was not asked for.

        Args:
            result: What the search has found.
            direction: Which of the hits.
            request: What the search was asked for. The model runs on the documents once more where it includes
                `tokens`.
        """
        is_lowest = direction == "opponents"
        hits = result.opponents if is_lowest else result.proponents
        if hits is None:
            return None
        notice = None if is_lowest else self.calibrated_notice(request)
        tokens: Sequence[list[TokenInfluence] | None] = [None] * len(hits)
        if "tokens" in request.include and hits:
            documents = [hit.document for hit in hits if hit.document]
            tokens = self.score_decomposer.token_influences(documents)
        scores = [hit.row.score for hit in hits]
        intervals = [hit.interval(result.rows, is_lowest=is_lowest) for hit in hits]
        updates = {
            "interval": intervals,
            "strength": strengths_of(scores, intervals, result.background_scores, notice),
            "percentile": percentiles(scores, result.background_scores),
            "tokens": tokens,
        }
        return [
            hit.row.model_copy(update=dict(zip(updates, values, strict=True)))
            for hit, *values in zip(hits, *updates.values(), strict=True)
        ]

    def _render_chats(
        self, queries: Mapping[int, AttributionQuery]
    ) -> dict[int, RenderedChat | BergsonError]:
        """Returns what the messages of those queries that have some were rendered as, or why they were not."""
        rendered = render_chat_queries(self.query_tokenizer.model, list(queries.values()))
        numbers = list(queries)
        return {numbers[position]: chat for position, chat in rendered.items()}

    def _prepare(
        self,
        query: AttributionQuery,
        chat: RenderedChat | BergsonError | None,
        alternative_chat: RenderedChat | BergsonError | None,
    ) -> TokenizedQuery:
        """Returns a query with its completion and its tokens.

        Args:
            query: The query.
            chat: What its messages were rendered as.
            alternative_chat: The same for its `instead_of`.

        Raises:
            BergsonError: This index cannot answer the query.
        """
        self._require_answerable(query)
        return self.query_tokenizer.complete_and_tokenize(query, chat, alternative_chat)

    def _require_answerable(self, query: AttributionQuery) -> None:
        """Raises a `BergsonError` for a query that this index cannot answer."""
        require_profile(self.index, self.manifest, query.profile)
        if "tokens" in query.include:
            self.score_decomposer.require_supported()
        if query.between is not None:
            require_between(query.between, self.manifest.spec.checkpoints)
        self.searcher.metadata.require_valid(query.filter or {})
        if self.searcher.damaged and not query.partial:
            raise damaged_shards_error(self.index, self.searcher.damaged)

    def _answer_tokenized(
        self, tokenized: Sequence[TokenizedQuery], started: float
    ) -> list[Answer | BergsonError]:
        """Answers queries whose tokens are known; `started` is the clock's reading before they were tokenised."""
        rows, losses = collect_query_rows(self.collector, tokenized, BUDGET_TOKENS)
        asked = [
            self._describe(item, item.echo(own_losses.tolist()))
            for item, own_losses in zip(tokenized, losses, strict=True)
        ]
        return self._answer_rows(asked, torch.from_numpy(rows), started)

    def _describe(self, item: TokenizedQuery, echo: QueryEcho) -> _AskedQuery:
        """Returns what an answer says of a query, with its warnings and the losses at the checkpoints of `between`."""
        losses = losses_between(self.collector.model, item.query, item.tokens)
        echo = echo.model_copy(update={"losses_between": losses})
        warnings = [*item.warnings, *unlikely_warnings(item, echo), *not_learned_warnings(losses)]
        return _AskedQuery(item.query, echo, warnings)

    def _answer_behaviour(self, query: AttributionQuery, started: float) -> Answer | BergsonError:
        """Answers a query that asks for a behaviour; `started` is the clock's reading before it was looked at."""
        self._require_answerable(query)
        vector = self.behaviours.difference(query.behaviour or "", query.instead_of_behaviour, query.profile)
        asked = _AskedQuery(query, self.behaviours.echo(query.behaviour or "", query.instead_of_behaviour))
        (outcome,) = self._answer_rows([asked], vector.reshape(1, -1), started)
        return outcome

    def _answer_rows(
        self, asked: Sequence[_AskedQuery], rows: Float[Tensor, "q D"], started: float
    ) -> list[Answer | BergsonError]:
        """Answers queries by their rows, or by the sums of φ of behaviours."""
        gradient_done = time.perf_counter()
        requests = [SearchRequest.from_query(item.query) for item in asked]
        results = self.search(rows, requests)
        outcomes = [
            self._results_or_error(request, result) for request, result in zip(requests, results, strict=True)
        ]
        done = time.perf_counter()
        timing = TimingMs(
            gradient=1e3 * (gradient_done - started),
            search=1e3 * (done - gradient_done),
            total=1e3 * (done - started),
        )
        return [
            outcome if isinstance(outcome, BergsonError) else self._make_answer(item, outcome, timing)
            for item, outcome in zip(asked, outcomes, strict=True)
        ]

    def _results_or_error(
        self, request: SearchRequest, result: SearchResult
    ) -> _AnswerResults | BergsonError:
        """Returns what was found for a request as its answer has it, or the error for which it cannot be returned."""
        try:
            proponents, opponents = (
                self.make_rows(result, direction, request) for direction in ("proponents", "opponents")
            )
        except BergsonError as error:
            return error
        notice = None
        if proponents:
            notice = significance_notice(
                proponents[0].score, result.background_scores, self.calibrated_notice(request)
            )
        background = score_histogram(result.background_scores) if "background" in request.include else None
        return _AnswerResults(proponents, opponents, notice, background)

    def calibrated_notice(self, request: SearchRequest) -> NoticeEntry | None:
        """Returns the threshold from which a proponent stands out.

        It was calibrated for single queries under the default profile and for all checkpoints. There is none otherwise.
        """
        is_calibrated = request.profile == DEFAULT_PROFILE and not request.by_features
        return self.manifest.notice if is_calibrated and request.between is None else None

    def _make_answer(self, asked: _AskedQuery, results: _AnswerResults, timing: TimingMs) -> Answer:
        return Answer(
            index=asked.query.index or self.index,
            generation=self.manifest.generation,
            profile=asked.query.profile,
            query=asked.echo,
            results=results.proponents,
            opponents=results.opponents,
            notice=results.notice,
            background=results.background,
            warnings=list(asked.warnings),
            partial=bool(self.searcher.damaged),
            timing_ms=timing,
        )
