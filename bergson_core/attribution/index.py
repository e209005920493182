"""Answers queries about an index; `opening` opens it.

A query runs forward and backward through the model once, and its gradient row is compared with those of the documents.

Legend: q queries, n rows of a shard, D numbers of a row.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from bergson_core.attribution.follow_up.answer_steps import Steps
from bergson_core.attribution.follow_up.group_folding import fold_results
from bergson_core.attribution.opening import IndexParts, open_index_parts
from bergson_core.attribution.queries.isolation import run_or_error
from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.indexing.executor import Executor, LocalExecutor
from bergson_core.models.language_model import token_limits
from bergson_core.models.loading import LoadModel
from bergson_core.schemas.filters import validate_filter
from bergson_core.schemas.query import (
    AttributionQuery,
    Direction,
    IncludedPart,
    Join,
    Objective,
    Order,
    VerifySpec,
)
from bergson_core.schemas.record import Messages
from bergson_core.schemas.results import Answer, ResultRow
from bergson_core.search.profile import Profile, require_profile
from bergson_core.search.searcher import SearchRequest
from bergson_core.shards.shard import Shard
from bergson_core.storage.layout import DEFAULT_PROFILE
from bergson_core.tokens.token_limits import TokenLimits
from bergson_core.utils.background import run_to_completion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttributionIndex(IndexParts):
    """A published index, open with its model in memory: `open` it, then `query` it. For use by one thread.

    Attributes:
        name: Name of the index's directory.
        manifest: What the index consists of and how it was built.
        model: The model that the index was built from.
        collector: Computes gradient rows as the index holds them.
        processor: Normalizers and projection of the rows.
        searcher: The shards, open for search.
        answerer: Answers queries from the shards.
        behaviours: The behaviours of the index: named sets of queries, which are created, listed and deleted here.
        rescorer: Scores candidates again by their whole gradients.
        word_order: Compares results with the words of the documents.
        verifier: Verifies results by unlearning documents.
    """

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        load_model: LoadModel | None = None,
        partial: bool = False,
        executor: Executor = LocalExecutor(),
        max_query_tokens: int | None = None,
    ) -> "AttributionIndex":
        """Opens the index in the directory `path`, and loads the model that it was built from.

        The open index does not change when documents are appended later; documents that are taken down are hidden from
        its answers at once.

        Args:
            path: Directory of the index.
            load_model: Called as `load_model(name, revision, dtype)`, for adapters of a local model also with
                `adapter_base`; `bergson_core.load_model` by default. A caller that has the model in memory passes a
                function that returns it.
            partial: Open an index with damaged shards without them. It then answers only queries that are `partial`.
            executor: Where shards are searched: in this process, or on the machines of a Ray cluster with
                `RayExecutor()`; see docs/scaling.md.
            max_query_tokens: Largest number of tokens of a query. By default it is the context of the model or, for a
                model that states none, as many as a pass has memory for.

        Raises:
            IndexNotFound: There is no published index in this directory.
            IndexCorrupt: A file of the index is missing or was altered, or the model's files are not those that the
                index was built from.
            ModelNotFound: The model is gone.
            ClusterUnavailable: The executor has no cluster to search on.
        """
        parts = open_index_parts(Path(path), load_model, partial, executor, max_query_tokens)
        return cls(**vars(parts))

    @property
    def query_limits(self) -> TokenLimits:
        """Which queries the model takes."""
        return token_limits(self.answerer.query_tokenizer.model)

    @property
    def shards(self) -> Sequence[Shard]:
        """The shards that are not damaged, mapped into memory."""
        return self.searcher.shards

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """The profiles of the index, by name."""
        return self.searcher.profiles

    def visible(self) -> Sequence[np.ndarray | None]:
        """Returns for each shard which of its rows have not been taken down by now: bool [n], or None for all."""
        return self.searcher.visible.masks()

    def query(
        self,
        prompt: str | None = None,
        completion: str | None = None,
        *,
        join: Join = "exact",
        instead_of: str | None = None,
        objective: Objective = "log_probability",
        between: tuple[int, int] | None = None,
        messages: Messages | None = None,
        behaviour: str | None = None,
        instead_of_behaviour: str | None = None,
        top_k: int = 10,
        direction: Direction = "proponents",
        span: tuple[int, int] | None = None,
        profile: str = DEFAULT_PROFILE,
        filter: Mapping[str, Any] | None = None,
        include: Sequence[IncludedPart] = ("text", "metadata"),
        order: Order = "influence",
        group_by: str | None = None,
        rescore: int | None = None,
        verify: VerifySpec | None = None,
        max_new_tokens: int = 32,
        partial: bool = False,
    ) -> Answer:
        """Returns the training documents that made the model say a completion.

        This is the method to call first; `attribute` answers many queries faster than one call for each.

        Example:
            index = AttributionIndex.open("people")
            answer = index.query("Ada Lovelace was born in", " London", top_k=3)
            for row in answer.results:
                print(row.rank, row.id, row.score, row.prompt)

        Args:
            prompt: Text before the completion. It may be empty.
            completion: Text to explain, usually with a space at its beginning. By default the model generates it, with
                the most likely token at each step.
            join: How prompt and completion are joined: `exact` adds nothing; `space` adds a space if neither has one
                and the tokenizer expects a space before a word.
            instead_of: Another completion of the same prompt, or of the span. The answer explains why the model says
                `completion` rather than this one. Opponents made this one more likely.
            objective: What is explained for each token: its log-probability, or its log-odds log p / (1 - p), with
                which tokens that the model is sure of count as much as others.
            between: Two checkpoints [earlier, later] of an index over several checkpoints, counted from 0; -1 is the
                last. The answer explains why the later model says the completion and the earlier one does not. Scores
                are means over the checkpoints from the earlier one up to, but not including, the later one.
            messages: A chat to explain instead of a prompt and a completion: messages with role and content. The last
                message is the assistant's. The chat is rendered as the chats of the index were, and the loss is that of
                all messages of the assistant.
            behaviour: A behaviour of the index to explain instead. The score of a document is the mean of its scores
                with the behaviour's queries, minus the mean of its scores with the control set. `verify` and `rescore`
                are then refused.
            instead_of_behaviour: Another behaviour, whose scores are subtracted.
            top_k: Number of results in each direction, at most 1,000.
            direction: `proponents` made the completion more likely, `opponents` made it less likely; `both` returns a
                list of each.
            span: Characters [start, end) of the completion, or of the last message's content, to explain; the rest is
                context.
            profile: Profile to score with: `default`, or one that `fit_profile` has added.
            filter: Conditions on metadata that every result meets. For each column: a value, a list of values of which
                one has to match, or comparisons such as `{"gte": 1990, "ne": 1995}`, with gte, gt, lte, lt, ne, not_in
                and exists (`Range`). Values have to be of the column's type. Documents without a value also meet `ne`
                and `not_in`, unless `exists` is true.
            include: What each result has in addition to id, score, percentile and loss: `text`, `metadata`, and its
                score split by `tokens` and by `modules`. `tokens` runs the results through the model again, and allows
                a `top_k` of at most 32. `words` says whether the result states the completion, and gives its rank by
                BM25; the first query with `words` reads the words of all documents. `background` adds a histogram of
                the scores of random documents to the answer.
            order: Order of the results: `influence` on the completion; `words`, by the BM25 scores of all documents for
                prompt and completion; or `fused`, by the sum of the reciprocal ranks in both orders.
            group_by: `document` returns each long document once, with its best chunk. `near_duplicates`, or the name of
                a metadata column, makes groups of the 1,000 best documents; then `top_k` counts groups, and each result
                has its `group` with the sum of the scores.
            rescore: Number of candidates in each direction, at most 1,000, to score by their whole gradients, which are
                not projected or preconditioned. They come first, and their `exact` is true. It needs the default
                profile.
            verify: How to verify the best results by unlearning them. By default they are not verified.
            max_new_tokens: Most tokens to generate when `completion` is left out.
            partial: Answer from the undamaged shards of an index that was opened with `partial`.

        Returns:
            The answer. `answer.results` are the proponents, best first, and `answer.opponents` the opponents; each is
            None unless `direction` asks for it. `answer.warnings` has probable mistakes, such as a completion without
            its leading space; they are also logged.

        Raises:
            InvalidInput: An argument is wrong; the text of the error says what was expected.
            BehaviourNotFound: The index has no such behaviour.
            TooLong: Prompt and completion together are longer than the model takes.
            IndexCorrupt: Shards of the index are damaged, and `partial` is false.
            ClusterUnavailable: The machines that hold the shards do not answer.
        """
        query = AttributionQuery.model_validate(
            {
                "prompt": prompt,
                "completion": completion,
                "join": join,
                "instead_of": instead_of,
                "objective": objective,
                "between": between,
                "messages": messages,
                "behaviour": behaviour,
                "instead_of_behaviour": instead_of_behaviour,
                "top_k": top_k,
                "direction": direction,
                "span": span,
                "profile": profile,
                "filter": filter,
                "include": include,
                "order": order,
                "group_by": group_by,
                "rescore": rescore,
                "verify": verify,
                "max_new_tokens": max_new_tokens,
                "partial": partial,
            }
        )
        (outcome,) = self.attribute([query])
        if isinstance(outcome, BergsonError):
            raise outcome
        for warning in outcome.warnings:
            logger.warning("%s: %s", warning.code, warning.detail)
        return outcome

    def attribute(self, queries: Sequence[AttributionQuery]) -> list[Answer | BergsonError]:
        """Answers queries together, in batches of up to 4,096 tokens.

        Each query gets the answer that it would get alone, up to rounding. Results are rescored and verified
        afterwards, one query after another, for those that ask for it.

        Args:
            queries: The queries. They need not name the index.

        Returns:
            For each query its answer, or the error that this query alone has caused.
        """
        queries = [AttributionQuery.model_validate(query) for query in queries]
        outcomes = self.answerer.answer([query.for_search() for query in queries])
        for number, (query, outcome) in enumerate(zip(queries, outcomes, strict=True)):
            if query.has_follow_up and isinstance(outcome, Answer):
                follow_up = partial(run_to_completion, self.follow_up(query, outcome))
                outcomes[number] = run_or_error(follow_up)
        return outcomes

    def follow_up(
        self, query: AttributionQuery, answer: Answer, rescore_until: float = math.inf
    ) -> Steps[Answer]:
        """Rescores, folds, orders by words and verifies the results of a query, as far as it asks for it, step by step.

        Between two steps the model has its own weights, so that other queries may be answered in between, or the work
        may be given up. `query` and `attribute` take all steps at once.

        Args:
            query: The query.
            answer: The answer to `query.for_search()`.
            rescore_until: When to stop rescoring, in seconds of Unix time. Candidates that are not scored by then keep
                the scores of the index, behind those that are.

        Returns:
            A generator that yields after each step, and returns the answer to the query.

        Raises:
            InvalidInput: At the first step: documents of this index cannot be rescored, or cannot be unlearned.
        """
        if query.folds:
            answer = yield from fold_results(query, answer, self.answerer, self.verifier.selector)
        if query.behaviour is not None:
            return answer  # it has no text, and so no other follow-up
        tokens = self.answerer.query_tokenizer.tokenize_answered(query, answer.query)
        if query.rescore is not None:
            answer = yield from self.rescorer.rescore(query, tokens, answer, rescore_until)
        if query.compares_words:
            answer = yield from self.word_order.apply(query, tokens, answer)
        if query.verify is not None:
            answer = yield from self.verify(query, answer)
        return answer

    def verify(self, query: AttributionQuery, answer: Answer) -> Steps[Answer]:
        """Verifies an answer by unlearning its best results, step by step.

        Between two steps the model has its own weights, so that other queries may be answered in between, or the
        verification may be given up. `query` and `attribute` take all steps at once.

        Args:
            query: The query; where it has no `verify`, the defaults of `VerifySpec` are taken.
            answer: The answer to this query.

        Returns:
            A generator that yields after each step, and returns the answer with what unlearning changed.

        Raises:
            InvalidInput: At the first step: documents of this index cannot be unlearned.
        """
        tokens = self.answerer.query_tokenizer.tokenize_answered(query, answer.query)
        return self.verifier.verify(query.verify or VerifySpec(), tokens, answer)

    def search(
        self,
        rows: Float[Tensor, "q D"],
        processor: GradientProcessor,
        *,
        top_k: int = 10,
        direction: Literal["proponents", "opponents"] = "proponents",
        profile: str = DEFAULT_PROFILE,
        filter: Mapping[str, Any] | None = None,
    ) -> list[list[ResultRow]]:
        """Finds the training documents for gradients that were computed elsewhere, for example of a loss of one's own.

        Args:
            rows: Gradients [q, D]: what a `GradientCollector` with this `processor` returns for each module of the
                index, in natural order of the modules' names, each flattened.
            processor: The processor that the gradients were computed with. It has to be that of the index, which
                `GradientProcessor.load` reads from its directory `statistics`.
            top_k: Number of results for each row.
            direction: Whether the highest scores are returned, or the lowest.
            profile: Profile to score with.
            filter: Conditions on metadata that every result meets, as in `query`.

        Returns:
            For each gradient its results, best first.

        Raises:
            InvalidInput: The gradients have another shape or were computed with another processor, whose projection or
                normalizer makes rows that cannot be compared; or the profile or filter is wrong.
        """
        if processor is not self.processor and processor.fingerprint() != self.processor.fingerprint():
            raise InvalidInput(
                f"the gradients were computed with another processor than the rows of {self.name}: expected "
                f"{self.processor.settings} and the normalizers of the index; load its processor from its directory "
                "statistics with GradientProcessor.load"
            )
        if rows.dim() != 2 or rows.shape[1] != self.collector.dimensions:
            raise InvalidInput(
                f"expected gradients of shape [q, {self.collector.dimensions}], got {list(rows.shape)}"
            )
        self.require_profile(profile)
        conditions = validate_filter(filter)
        self.searcher.metadata.require_valid(conditions or {})
        request = SearchRequest(top_k, direction, ("text", "metadata"), profile, conditions)
        search_results = self.answerer.search(rows.float().cpu(), [request] * len(rows))
        return [self.answerer.make_rows(result, direction, request) or [] for result in search_results]

    def require_profile(self, profile: str) -> None:
        """Raises `InvalidInput`, naming the profiles that the index has, unless `profile` is one of them."""
        require_profile(self.name, self.manifest, profile)
