"""Opens an index and answers queries: one backward pass for all of them, candidates, exact scores.

Legend: q queries, m layers, d numbers a layer, D = m·d, k candidates.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import TypeAdapter
from torch import Tensor

from bergson_core.attribution.query_tokenizer import TokenizedQuery
from bergson_core.attribution.token_influence import ScoreDecomposer
from bergson_core.attribution.verification import VerificationSteps, Verifier
from bergson_core.data.batching import BUDGET_TOKENS, Tokens, require_max_tokens, tokenize, with_loss_weight
from bergson_core.errors import BergsonError, IndexCorrupt, InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.indexing.executor import Executor, LocalExecutor
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel, context_limit, require_same_model
from bergson_core.models.loading import LoadModel, load_model
from bergson_core.schemas.build import GradientSpec
from bergson_core.schemas.filters import Condition
from bergson_core.schemas.query import AttributionQuery, VerifySpec
from bergson_core.schemas.results import Answer, QueryEcho, ResultRow, TimingMs, TokenInfluence
from bergson_core.search.background_sample import percentile
from bergson_core.search.damaged_shards import damaged_shards_error
from bergson_core.search.profile import Profile
from bergson_core.search.searcher import Hit, Searcher, SearchRequest, SearchResult
from bergson_core.search.significance import significance_notice
from bergson_core.shards.shard import Shard
from bergson_core.storage.layout import DEFAULT_PROFILE
from bergson_core.storage.manifest import Manifest, read_manifest
from bergson_core.utils.background import run_to_completion


@dataclass(frozen=True)
class AttributionIndex:
    """A published index with its model in memory. Open it with `open`; ask it with `attribute`."""

    name: str
    manifest: Manifest
    model: LanguageModel
    collector: RowCollector
    processor: GradientProcessor
    searcher: Searcher
    score_decomposer: ScoreDecomposer
    verifier: Verifier

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        load_model: LoadModel = load_model,
        partial: bool = False,
        executor: Executor = LocalExecutor(),
    ) -> "AttributionIndex":
        """The index at `path`, with the model that it was built from: `load_model(name, revision, dtype)`.

        It stays as it is when documents are appended later; what is taken down is hidden at once. With `partial`,
        shards that are damaged are left out, and only queries that allow it are answered. With the executor `ray`
        the machines of a cluster hold the shards (docs/scaling.md).
        Raises `IndexNotFound` where none is published there, `IndexCorrupt` where its files or the model are not
        those that it was built from, `ModelNotFound` where the model is gone, `ClusterUnavailable`.
        """
        root = Path(path)
        while True:
            manifest = read_manifest(root)
            try:
                return cls._open(root, manifest, load_model, partial, executor)
            except (IndexCorrupt, FileNotFoundError) as error:
                if read_manifest(root).generation != manifest.generation:
                    continue  # files of the old generation went while they were opened
                if isinstance(error, IndexCorrupt):
                    raise
                raise IndexCorrupt(f"a file of {root} is gone: {error}") from error

    @classmethod
    def _open(
        cls, root: Path, manifest: Manifest, load_model: LoadModel, partial: bool, executor: Executor
    ) -> "AttributionIndex":
        spec, searcher = manifest.spec, executor.open_searcher(root, manifest)
        if searcher.damaged and not (partial and len(searcher.damaged) < len(manifest.shards)):
            raise damaged_shards_error(root.name, searcher.damaged)
        processor = GradientProcessor.load(root / "statistics")
        _check_projection(processor, spec.gradients)
        model = load_model(spec.model, manifest.revision, spec.dtype)
        require_same_model(root.name, manifest, model)
        collector = RowCollector(model, processor, [module.name for module in manifest.modules])
        tokens = ScoreDecomposer(root, manifest, model, processor, collector)
        verifier = Verifier(manifest, model, searcher)
        return cls(root.name, manifest, model, collector, processor, searcher, tokens, verifier)

    @property
    def shards(self) -> Sequence[Shard]:
        return self.searcher.shards

    def visible(self) -> Sequence[np.ndarray | None]:
        """For each shard which of its rows may be shown by now, bool [n], or None for all of them."""
        return self.searcher.visible.masks()

    @property
    def profiles(self) -> Mapping[str, Profile]:
        return self.searcher.profiles

    def attribute(self, queries: Sequence[AttributionQuery]) -> list[Answer | BergsonError]:
        """An answer, or the error that is the query's own fault, for each query in order.

        Queries are answered together, in batches of up to `BUDGET_TOKENS`; each gets what it would get alone,
        up to rounding. Then the results of those that ask for it are verified.
        """
        outcomes = self._answered(queries)
        for k, (query, outcome) in enumerate(zip(queries, outcomes, strict=True)):
            if query.verify is not None and isinstance(outcome, Answer):
                try:
                    outcomes[k] = run_to_completion(self.verify(query, outcome))
                except BergsonError as error:
                    outcomes[k] = error
        return outcomes

    def verify(self, query: AttributionQuery, answer: Answer) -> VerificationSteps[Answer]:
        """`answer`, which was given to `query`, with what unlearning its best rows changed.

        It comes in steps, between which the model is as it was. Raises `InvalidInput` where that cannot be done.
        """
        spec, asked = query.verify or VerifySpec(), self._tokens(query, answer.query.completion)
        return self.verifier.verify(spec, asked, answer)

    def _answered(self, queries: Sequence[AttributionQuery]) -> list[Answer | BergsonError]:
        started = time.perf_counter()
        asked = [self._said(query) for query in queries]
        outcomes: list[Any] = list(asked)
        good = {k: one for k, one in enumerate(asked) if isinstance(one, TokenizedQuery)}
        if not good:
            return outcomes
        tokens = [one.tokens for one in good.values()]
        rows, losses = collect_rows(self.collector, tokens, BUDGET_TOKENS)
        gradient_done = time.perf_counter()
        found = self._search(torch.from_numpy(rows), [SearchRequest.from_query(queries[k]) for k in good])
        shown = [self._both(one, queries[k].include) for k, one in zip(good, found, strict=True)]
        done = time.perf_counter()
        timing = TimingMs(
            gradient=1e3 * (gradient_done - started),
            search=1e3 * (done - gradient_done),
            total=1e3 * (done - started),
        )
        for (k, one), loss, its, rows in zip(good.items(), losses, found, shown, strict=True):
            query = queries[k]
            if isinstance(rows, BergsonError):
                outcomes[k] = rows
                continue
            results, opponents = rows
            outcomes[k] = Answer(
                index=query.index,
                generation=self.manifest.generation,
                profile=query.profile,
                query=QueryEcho(
                    prompt=query.prompt,
                    completion=one.completion,
                    generated=query.completion is None,
                    loss=float(loss),
                    n_tokens=one.tokens.n_labelled,
                ),
                results=results,
                opponents=opponents,
                notice=self._notice(query, results, its.background_scores),
                partial=bool(self.searcher.damaged),
                timing_ms=timing,
            )
        return outcomes

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
        """The `top_k` training samples, best first, for each gradient that was made elsewhere.

        Of a loss of one's own, say: `rows` are what a `GradientCollector` gives for each of the index's modules in
        natural order, each flattened, with `processor`.
        Raises `InvalidInput` where `processor` is not that of the index, saved in its directory `statistics`: another
        projection or normalizer makes rows that cannot be compared.
        """
        if processor is not self.processor and processor.fingerprint() != self.processor.fingerprint():
            raise InvalidInput(
                f"the gradients were made by another processor than the rows of {self.name}: expected "
                f"{self.processor.settings} and the normalizers fitted for it; load them from its directory "
                "statistics with GradientProcessor.load"
            )
        if rows.dim() != 2 or rows.shape[1] != self.collector.dimensions:
            raise InvalidInput(
                f"expected gradients of shape [q, {self.collector.dimensions}], got {list(rows.shape)}"
            )
        self.require_profile(profile)
        conditions = TypeAdapter(dict[str, Condition]).validate_python(filter) if filter else None
        asked = SearchRequest(top_k, direction, ("text", "metadata"), profile, conditions)
        found = self._search(rows.float().cpu(), [asked] * len(rows))
        return [
            self._shown(one.proponents or one.opponents, one.background_scores, asked.include) or []
            for one in found
        ]

    def require_profile(self, profile: str) -> None:
        """Raises `InvalidInput` for a profile that the index does not have, saying which it has."""
        names = [one.name for one in self.manifest.profiles]
        if profile not in names:
            raise InvalidInput(f"{self.name} has no profile {profile!r}; it has {', '.join(names)}")

    def _said(self, query: AttributionQuery) -> "TokenizedQuery | BergsonError":
        try:
            self.require_profile(query.profile)
            if "tokens" in query.include:
                self.score_decomposer.require_supported()
            self.searcher.metadata.require_columns(query.filter or {})
            if self.searcher.damaged and not query.partial:
                raise damaged_shards_error(self.name, self.searcher.damaged)
            completion = query.completion
            if completion is None:
                completion = generate_completion(self.model, query.prompt, query.max_new_tokens)
            tokens = self._tokens(query, completion)
            require_max_tokens(tokens, context_limit(self.model, None), "prompt and completion together")
        except BergsonError as error:
            return error
        if tokens.n_labelled == 0:
            return InvalidInput(
                "nothing to attribute: the completion, or the span of it, has no token that follows another; "
                "expected a prompt, or a longer completion or span"
            )
        return TokenizedQuery(completion, tokens)

    def _tokens(self, query: AttributionQuery, completion: str) -> Tokens:
        assert self.model.tokenizer is not None  # load_model always gives one
        (tokens,) = tokenize(self.model.tokenizer, [query.prompt], [completion], [query.span])
        return with_loss_weight(tokens, self.manifest.spec.gradients.loss)

    def _both(
        self, found: SearchResult, include: Collection[str]
    ) -> "tuple[list[ResultRow] | None, list[ResultRow] | None] | BergsonError":
        """(proponents, opponents) as an answer has them, or why they cannot be shown so."""
        try:
            return (
                self._shown(found.proponents, found.background_scores, include),
                self._shown(found.opponents, found.background_scores, include),
            )
        except BergsonError as error:
            return error

    def _shown(
        self, hits: Sequence[Hit] | None, sampled: Float32[np.ndarray, " r"], include: Collection[str]
    ) -> list[ResultRow] | None:
        """The rows of `hits` as an answer has them: with how they stand among random rows, and with their tokens."""
        if hits is None:
            return None
        tokens: Sequence[list[TokenInfluence] | None] = [None] * len(hits)
        if "tokens" in include and hits:
            tokens = self.score_decomposer.token_influences([hit.document for hit in hits if hit.document])
        return [
            hit.row.model_copy(update={"percentile": percentile(hit.row.score, sampled), "tokens": its})
            for hit, its in zip(hits, tokens, strict=True)
        ]

    def _notice(
        self, query: AttributionQuery, results: list[ResultRow] | None, sampled: Float32[np.ndarray, " r"]
    ) -> str | None:
        """What there is to say where nothing stands out, under the profile that it was calibrated for."""
        if not results or query.profile != DEFAULT_PROFILE:
            return None
        return significance_notice(results[0].score, sampled, self.manifest.notice)

    def _search(self, rows: Float[Tensor, "q D"], queries: Sequence[SearchRequest]) -> list[SearchResult]:
        return self.searcher.search(rows.reshape(len(rows), len(self.collector.slices), -1), queries)


def _check_projection(processor: GradientProcessor, settings: GradientSpec) -> None:
    stated = {name: getattr(settings, name) for name in processor.settings}
    if processor.settings != stated:
        raise IndexCorrupt(f"the rows were projected by {stated}, and statistics hold {processor.settings}")
