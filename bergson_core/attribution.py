"""Opens an index and answers queries: one backward pass for all of them, candidates, exact scores.

Legend: q queries, m layers, d numbers a layer, D = m·d, k candidates.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor

from bergson_core.answers import Answer, QueryEcho, ResultRow, TimingMs
from bergson_core.batching import BUDGET_TOKENS, Tokens, check_length, tokenize
from bergson_core.collect import RowCollector, collect_in_order
from bergson_core.documents import weighted
from bergson_core.errors import BergsonError, IndexCorrupt, InvalidInput
from bergson_core.filters import MetadataFilter
from bergson_core.manifest import Manifest, read_manifest
from bergson_core.models import LanguageModel, context_limit, load_model
from bergson_core.processor import GradientProcessor
from bergson_core.profiles import DEFAULT, Profile
from bergson_core.search import Candidates, inverse
from bergson_core.specs import AttributionQuery, Condition, Direction, GradientSpec
from bergson_core.store import RowShape, Shard, check_contents


@dataclass(frozen=True)
class _Asked:
    """What of a query concerns the search."""

    top_k: int
    direction: Direction
    include: Sequence[str]
    profile: str
    filter: Mapping[str, Condition] | None

    @classmethod
    def by(cls, query: AttributionQuery) -> "_Asked":
        return cls(query.top_k, query.direction, query.include, query.profile, query.filter)

    def like(self, other: "_Asked") -> bool:
        """Whether both can be searched for together."""
        return self.profile == other.profile and self.filter == other.filter


_ALL_BELOW: Final = 10
"""Times the candidates: so few rows that meet a filter are all scored exactly."""
LoadModel = Callable[..., LanguageModel]


@dataclass(frozen=True)
class AttributionIndex:
    """A published index with its model in memory. Open it with `open`; ask it with `attribute`."""

    name: str
    manifest: Manifest
    model: LanguageModel
    collector: RowCollector
    processor: GradientProcessor
    profiles: Mapping[str, Profile]
    shards: Sequence[Shard]
    candidates: Candidates
    metadata: MetadataFilter

    @classmethod
    def open(cls, path: str | Path, *, load_model: LoadModel = load_model) -> "AttributionIndex":
        """The index at `path`, with the model that it was built from: `load_model(name, revision, dtype)`.

        Raises `IndexNotFound` where none is published there, `IndexCorrupt` where its files or the model are not
        those that it was built from, `ModelNotFound` where the model is gone.
        """
        root = Path(path)
        manifest = read_manifest(root)
        spec = manifest.spec
        check_contents(root, [entry for entry in manifest.files if not entry.path.startswith("search/")])
        processor = GradientProcessor.load(root / "statistics")
        _check_projection(processor, spec.gradients)
        model = load_model(spec.model, spec.revision, spec.dtype)
        if model.sha256 != manifest.model_sha256:
            raise IndexCorrupt(
                f"the model {spec.model} is not the one that the index {root.name} was built from: its files have "
                "changed; restore it or build the index again"
            )
        names = [module.name for module in manifest.modules]
        collector = RowCollector(model, processor, names)
        shards = [Shard.open(root, entry, RowShape.of(manifest)) for entry in manifest.shards]
        return cls(
            name=root.name,
            manifest=manifest,
            model=model,
            collector=collector,
            processor=processor,
            profiles={entry.name: Profile.open(root, manifest, entry) for entry in manifest.profiles},
            shards=shards,
            candidates=Candidates.open(root, manifest),
            metadata=MetadataFilter(shards, spec.columns.metadata),
        )

    def attribute(self, queries: Sequence[AttributionQuery]) -> list[Answer | BergsonError]:
        """An answer, or the error that is the query's own fault, for each query in order.

        Queries are answered together, in batches of up to `BUDGET_TOKENS`; each gets what it would get alone,
        up to rounding.
        """
        started = time.perf_counter()
        outcomes: list[Any] = [self._tokens(query) for query in queries]
        good = [k for k, outcome in enumerate(outcomes) if isinstance(outcome, Tokens)]
        if not good:
            return outcomes
        tokens = [outcomes[k] for k in good]
        rows, losses = collect_in_order(self.collector, tokens, BUDGET_TOKENS)
        gradient_done = time.perf_counter()
        found = self._search(torch.from_numpy(rows), [_Asked.by(queries[k]) for k in good])
        done = time.perf_counter()
        timing = TimingMs(
            gradient=1e3 * (gradient_done - started),
            search=1e3 * (done - gradient_done),
            total=1e3 * (done - started),
        )
        for k, one, loss, (results, opponents) in zip(good, tokens, losses, found, strict=True):
            query = queries[k]
            outcomes[k] = Answer(
                index=query.index,
                generation=self.manifest.generation,
                profile=query.profile,
                query=QueryEcho(
                    prompt=query.prompt, completion=query.completion, loss=float(loss), n_tokens=one.labelled
                ),
                results=results,
                opponents=opponents,
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
        profile: str = DEFAULT,
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
        self.check_profile(profile)
        conditions = TypeAdapter(dict[str, Condition]).validate_python(filter) if filter else None
        asked = _Asked(top_k, direction, ("text", "metadata"), profile, conditions)
        found = self._search(rows.float().cpu(), [asked] * len(rows))
        return [proponents or opponents or [] for proponents, opponents in found]

    def check_profile(self, profile: str) -> None:
        """Raises `InvalidInput` for a profile that the index does not have, saying which it has."""
        if profile not in self.profiles:
            raise InvalidInput(f"{self.name} has no profile {profile!r}; it has {', '.join(self.profiles)}")

    def _tokens(self, query: AttributionQuery) -> Tokens | BergsonError:
        assert self.model.tokenizer is not None  # load_model always gives one
        try:
            self.check_profile(query.profile)
            self.metadata.check(query.filter or {})
            (tokens,) = tokenize(self.model.tokenizer, [query.prompt], [query.completion])
            tokens = weighted(tokens, self.manifest.spec.gradients.loss)
            check_length(tokens, context_limit(self.model, None), "prompt and completion together")
        except BergsonError as error:
            return error
        if tokens.labelled == 0:
            return InvalidInput(
                "nothing to attribute: the completion has no token that follows another; expected a prompt, or a "
                "longer completion"
            )
        return tokens

    def _search(
        self, rows: Tensor, queries: Sequence[_Asked]
    ) -> list[tuple[list[ResultRow] | None, list[ResultRow] | None]]:
        """(proponents, opponents) for each query from its row [q, D]; None for what was not asked for."""
        blocks = rows.reshape(len(rows), len(self.collector.slices), -1)
        signs = {"proponents": (1,), "opponents": (-1,), "both": (1, -1)}
        answers: list[dict[int, list[ResultRow]]] = [{} for _ in queries]
        left = list(range(len(queries)))
        while left:
            first = queries[left[0]]
            here = [k for k in left if queries[k].like(first)]
            left = [k for k in left if k not in here]
            profile = self.profiles[first.profile]
            phi, weights = profile.prepare(blocks[here])
            asked = [(i, sign) for i, k in enumerate(here) for sign in signs[queries[k].direction]]
            directed = torch.stack([sign * phi[i] for i, sign in asked])
            count = profile.candidates_for(max(queries[k].top_k for k in here), self.manifest.search)
            candidates = self._candidates(directed, count, first.filter)
            for (i, sign), shards, places in zip(asked, *candidates, strict=True):
                query, real = queries[here[i]], places >= 0
                shards, places = shards[real], places[real]
                scores = self._exact_scores(weights[i], profile, shards, places)
                best = np.argsort(-sign * scores, kind="stable")[: query.top_k]
                answers[here[i]][sign] = [
                    self._result(rank, int(shards[c]), int(places[c]), float(scores[c]), query)
                    for rank, c in enumerate(best, start=1)
                ]
        return [(found.get(1), found.get(-1)) for found in answers]

    def _candidates(
        self, queries: Tensor, count: int, conditions: Mapping[str, Condition] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(shard [q, k], place [q, k] or -1) of the rows to score exactly.

        Where few rows meet the conditions, these are all of them: among few, FAISS has nothing to save.
        """
        if conditions is None:
            return self.candidates.find(queries, count)
        allowed = self.metadata.rows(conditions)
        if sum(int(mask.sum()) for mask in allowed) > _ALL_BELOW * count:
            return self.candidates.find(queries, count, allowed)
        places = [np.flatnonzero(mask) for mask in allowed]
        shards = np.repeat(np.arange(len(places)), [len(one) for one in places])
        shape = (len(queries), len(shards))
        return np.broadcast_to(shards, shape), np.broadcast_to(np.concatenate(places), shape)

    def _exact_scores(
        self, weights: Tensor, profile: Profile, shards: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """Scores [k] float32 from the stored rows: (C^-½ φ) · row over its lengths, block by block or as a whole."""
        scores = np.zeros(len(places), dtype=np.float32)
        for number in np.unique(shards):
            here = shards == number
            raw = self.shards[number].products(places[here], weights)
            lengths = torch.from_numpy(np.array(profile.lengths[number][places[here]]))
            scores[here] = (raw * inverse(lengths)).sum(1).numpy()
        return scores

    def _result(self, rank: int, shard: int, place: int, score: float, query: _Asked) -> ResultRow:
        row = self.shards[shard].records.slice(place, 1).to_pylist()[0]
        text = "text" in query.include
        return ResultRow(
            rank=rank,
            id=row["id"],
            score=score,
            prompt=row["prompt"] if text else None,
            completion=row["completion"] if text else None,
            metadata=json.loads(row["metadata"]) if "metadata" in query.include else None,
            loss=row["loss"],
        )


def _check_projection(processor: GradientProcessor, settings: GradientSpec) -> None:
    stated = {name: getattr(settings, name) for name in processor.settings}
    if processor.settings != stated:
        raise IndexCorrupt(f"the rows were projected by {stated}, and statistics hold {processor.settings}")
