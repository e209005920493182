"""Rescores the results of a query: their documents run through the model again, and are scored by whole gradients.

A row of an index is a projection of a document's gradient, and its score has the noise of the projection. The best
candidates of a search are therefore scored a second time, by gradients that are normalized as in the index and neither
projected nor stored (`gradients.whole_gradient_scores`). The preconditioner C is the second moment of projected rows,
so that there is none for whole gradients, and they are compared without one.

An index of K-FAC-whitened rows does not keep what whitens whole gradients: the first rescoring fits it again
(`whole_normalizers`).

The work is divided into steps, between which other queries are answered. A caller that cannot wait until all candidates
are scored says until when there is time. The best candidates by the index go first, in groups of growing size, so that
the time is spent on them if it is short.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat, zip_longest
from typing import Final

from jaxtyping import Float
from torch import Tensor

from bergson_core.attribution.document_selection import DocumentSelector, RowLocation
from bergson_core.attribution.follow_up.answer_steps import Steps, with_timing
from bergson_core.attribution.follow_up.whole_normalizers import WholeNormalizers
from bergson_core.attribution.token_influence import list_token_influences
from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.gradients.whole_gradient_scores import WholeGradientScorer
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.record import record_from_stored
from bergson_core.schemas.results import Answer, Rescored, ResultRow, TokenInfluence
from bergson_core.search.searcher import Searcher
from bergson_core.storage.manifest import Manifest
from bergson_core.tokens.batching import iter_batches, step_budget_tokens
from bergson_core.tokens.tokenization import Tokens

_GROUP_SIZES: Final = (4, 8, 16, 32, 64)
"""Candidates that are tokenised together; the last size is that of all further groups."""


@dataclass(frozen=True)
class _ExactScore:
    """The score of a document by its whole gradient, with the parts that the query asks for."""

    score: float
    modules: dict[str, float] | None
    tokens: list[TokenInfluence] | None

    def apply(self, row: ResultRow) -> ResultRow:
        """Returns a result with this score."""
        parts = {"modules": self.modules, "tokens": self.tokens}
        return row.model_copy(update={"score": self.score, "exact": True, "interval": None} | parts)


class _Pace:
    """Tells whether there is time for another pass through the model until `until`, in seconds of Unix time."""

    def __init__(self, until: float) -> None:
        self._until, self._seconds_per_token = until, 0.0

    def has_time_for(self, tokens: int) -> bool:
        """Returns whether a pass over so many tokens would be over in time, if it is as fast as the one before."""
        return time.time() + tokens * self._seconds_per_token < self._until

    @contextmanager
    def measure(self, tokens: int) -> Iterator[None]:
        """Measures the pass over so many tokens that runs in the context."""
        started = time.perf_counter()
        yield
        self._seconds_per_token = (time.perf_counter() - started) / tokens


class Rescorer:
    """Rescores candidates of an index. For use by one thread.

    Args:
        manifest: Manifest of the index.
        collector: Computes rows as the index holds them; its model and its modules are used.
        processor: Normalizers of the gradients.
        searcher: The shards of the index.

    Attributes:
        whole_normalizers: Makes the normalizers of whole gradients.
    """

    def __init__(
        self, manifest: Manifest, collector: RowCollector, processor: GradientProcessor, searcher: Searcher
    ) -> None:
        self._manifest, self._collector = manifest, collector
        self._selector = DocumentSelector(manifest, collector.model, searcher)
        self.whole_normalizers = WholeNormalizers(manifest, collector, processor, self._selector)

    def rescore(
        self, query: AttributionQuery, tokens: Sequence[Tokens], answer: Answer, until: float = math.inf
    ) -> Steps[Answer]:
        """Returns the answer with its best candidates scored exactly and in the order of these scores.

        Args:
            query: The query, which says how many candidates to rescore.
            tokens: Tokens of the query (`TokenizedQuery.weighted_tokens`).
            answer: The answer to the query as it is searched for (`AttributionQuery.for_search`).
            until: When to stop, in seconds of Unix time. No pass through the model is begun that would probably end
                later; candidates that are not scored by then keep the score of the index, behind those that are.

        Raises:
            InvalidInput: The index was made by a training run, or the weights of its documents are not stored.
        """
        return with_timing(self._rescore(query, tokens, answer, until), answer, "rescore")

    def _rescore(
        self, query: AttributionQuery, tokens: Sequence[Tokens], answer: Answer, until: float
    ) -> Steps[Answer]:
        self._require_supported()
        directions = [
            rows[: query.rescore] for rows in (answer.results, answer.opponents) if rows is not None
        ]
        candidates = self._locate(directions)
        scores = yield from self._score(query, tokens, candidates, until)
        gone = {row.id for rows in directions for row in rows} - candidates.keys()
        reorder = partial(_reorder, scores=scores, gone=gone, top_k=query.top_k)
        return answer.model_copy(
            update={
                "results": reorder(answer.results, 1),
                "opponents": reorder(answer.opponents, -1),
                "rescored": Rescored(candidates=len(candidates), exact=len(scores)),
            }
        )

    def _require_supported(self) -> None:
        """Raises `InvalidInput` for an index whose rows are not gradients of its model alone."""
        if self._manifest.origin == "training":
            raise InvalidInput(
                "this index was made by a training run, step by step, and the finished model cannot compute the "
                "gradients of its documents as they were learned: leave `rescore` out"
            )
        if self._manifest.spec.models:
            raise InvalidInput(
                "this index has several checkpoints, and candidates are rescored by the whole gradients of one model: "
                "leave `rescore` out, or build an index of the last checkpoint alone"
            )

    def _locate(self, directions: Sequence[Sequence[ResultRow]]) -> dict[str, RowLocation]:
        """Returns where the candidates are that have not been taken down, by id, the best of all directions first."""
        in_turn = (row for rows in zip_longest(*directions) for row in rows if row is not None)
        ids = list(dict.fromkeys(row.id for row in in_turn))
        locations = self._selector.locate(ids)
        return {document_id: locations[document_id] for document_id in ids if document_id in locations}

    def _score(
        self,
        query: AttributionQuery,
        tokens: Sequence[Tokens],
        candidates: Mapping[str, RowLocation],
        until: float,
    ) -> Steps[dict[str, _ExactScore]]:
        """Returns the exact scores of the candidates that there is time for, by id."""
        scores: dict[str, _ExactScore] = {}
        pace = _Pace(until)
        if not candidates:
            return scores
        processor = yield from self.whole_normalizers.prepare(pace, self._budget_tokens)
        query_tokens = sum(len(text.ids) for text in tokens)
        if processor is None or not pace.has_time_for(query_tokens):
            return scores
        with pace.measure(query_tokens):
            scorer = WholeGradientScorer(
                self._collector.model,
                processor,
                self._collector.modules,
                tokens,
                self._manifest.spec.scoring.normalize,
                by_position="tokens" in query.include,
            )
        yield
        for group in _groups(list(candidates)):
            documents = self._selector.tokenize([candidates[document_id] for document_id in group])
            for batch in iter_batches(documents, self._budget_tokens, self._collector.device):
                if not pace.has_time_for(batch.input_ids.numel()):
                    return scores
                with pace.measure(batch.input_ids.numel()):
                    exact = scorer.score(batch)
                    modules = exact.modules.cpu()
                    positions = None if exact.positions is None else exact.positions.cpu()
                for row, number in enumerate(batch.indices.tolist()):
                    document_id, document = group[number], documents[number]
                    parts = None if positions is None else positions[row, batch.token_positions(row)]
                    scores[document_id] = self._make_score(
                        candidates[document_id], document, modules[row], parts, "modules" in query.include
                    )
                yield
        return scores

    def _make_score(
        self,
        location: RowLocation,
        document: Tokens,
        modules: Float[Tensor, " m"],
        positions: Float[Tensor, " s"] | None,
        with_modules: bool,
    ) -> _ExactScore:
        """Returns the score of a document from the parts of its modules and, where they are asked for, positions."""
        influences = None
        if positions is not None:
            stored, tokenizer = self._selector.read(location), self._collector.model.tokenizer
            assert tokenizer is not None  # load_model always gives one
            columns = self._manifest.spec.columns
            record = record_from_stored(stored, columns)
            influences = list_token_influences(tokenizer, record, document, positions)
        return _ExactScore(
            float(modules.sum()),
            dict(zip(self._collector.modules, modules.tolist(), strict=True)) if with_modules else None,
            influences,
        )

    @property
    def _budget_tokens(self) -> int:
        return step_budget_tokens(self._collector.device)


def _groups(ids: list[str]) -> Iterator[list[str]]:
    """Yields the ids of the candidates in order, in groups of growing size."""
    start = 0
    for size in chain(_GROUP_SIZES, repeat(_GROUP_SIZES[-1])):
        if start >= len(ids):
            return
        yield ids[start : start + size]
        start += size


def _reorder(
    rows: Sequence[ResultRow] | None,
    sign: int,
    scores: Mapping[str, _ExactScore],
    gone: Collection[str],
    top_k: int,
) -> list[ResultRow] | None:
    """Returns the results of one direction: those with an exact score in its order, and behind them the others.

    Args:
        rows: The results in the order of the index's scores.
        sign: What scores are multiplied with, so that the best are the highest.
        scores: The exact scores, by id.
        gone: Ids of candidates that were taken down meanwhile, and are left out.
        top_k: Largest number of results.
    """
    if rows is None:
        return None
    exact = [scores[row.id].apply(row) for row in rows if row.id in scores]
    exact.sort(key=lambda row: -sign * row.score)
    others = [row for row in rows if row.id not in scores and row.id not in gone]
    ranked = enumerate((exact + others)[:top_k], start=1)
    return [row.model_copy(update={"rank": rank}) for rank, row in ranked]
