"""Opens an index and answers queries: one backward pass for all of them, candidates, exact scores.

Legend: q queries, m layers, d numbers a layer, D = m·d, k candidates.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bergson_core.answers import Answer, QueryEcho, ResultRow, TimingMs
from bergson_core.batching import BUDGET_TOKENS, Tokens, check_length, tokenize
from bergson_core.collect import RowCollector, collect_in_order
from bergson_core.errors import BergsonError, IndexCorrupt, InvalidInput
from bergson_core.manifest import Manifest, read_manifest
from bergson_core.models import LanguageModel, context_limit, load_model
from bergson_core.preconditioners import PROFILE, Preconditioner
from bergson_core.processor import GradientProcessor
from bergson_core.search import Candidates, features, inverse
from bergson_core.specs import AttributionQuery
from bergson_core.store import RowShape, Shard, check_contents

LoadModel = Callable[..., LanguageModel]


@dataclass(frozen=True)
class AttributionIndex:
    """A published index with its model in memory. Open it with `open`; ask it with `attribute`."""

    name: str
    manifest: Manifest
    model: LanguageModel
    collector: RowCollector
    preconditioner: Preconditioner | None
    shards: Sequence[Shard]
    candidates: Candidates

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
        model = load_model(spec.model, spec.revision, spec.dtype)
        if model.sha256 != manifest.model_sha256:
            raise IndexCorrupt(
                f"the model {spec.model} is not the one that the index {root.name} was built from: its files have "
                "changed; restore it or build the index again"
            )
        processor = GradientProcessor.load(root / "statistics")
        names = [module.name for module in manifest.modules]
        collector = RowCollector(model, processor, names)
        return cls(
            name=root.name,
            manifest=manifest,
            model=model,
            collector=collector,
            preconditioner=Preconditioner.load(root / PROFILE) if spec.scoring.preconditioner else None,
            shards=[Shard.open(root, entry, RowShape.of(manifest)) for entry in manifest.shards],
            candidates=Candidates.open(root, manifest),
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
        rows, losses = collect_in_order(self.collector, tokens, self.model.device, BUDGET_TOKENS)
        gradient_done = time.perf_counter()
        found = self._search(torch.from_numpy(rows), [queries[k] for k in good])
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
                query=QueryEcho(
                    prompt=query.prompt, completion=query.completion, loss=float(loss), n_tokens=one.labelled
                ),
                results=results,
                opponents=opponents,
                timing_ms=timing,
            )
        return outcomes

    def _tokens(self, query: AttributionQuery) -> Tokens | BergsonError:
        assert self.model.tokenizer is not None  # load_model always gives one
        try:
            (tokens,) = tokenize(self.model.tokenizer, [query.prompt], [query.completion])
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
        self, rows: Tensor, queries: Sequence[AttributionQuery]
    ) -> list[tuple[list[ResultRow] | None, list[ResultRow] | None]]:
        """(proponents, opponents) for each query from its row [q, D]; None for what was not asked for."""
        normalize = self.manifest.spec.scoring.normalize
        blocks = rows.reshape(len(rows), len(self.collector.slices), -1)
        phi, _ = features(blocks, self.preconditioner, normalize)
        weights = phi.reshape(blocks.shape)
        if self.preconditioner and self.candidates.shape.kind != "sign":  # which are preconditioned already
            weights = self.preconditioner.apply(weights)
        signs = {"proponents": (1,), "opponents": (-1,), "both": (1, -1)}
        asked = [(k, sign) for k, query in enumerate(queries) for sign in signs[query.direction]]
        directed = torch.stack([sign * phi[k] for k, sign in asked])
        top_k = max(query.top_k for query in queries)
        answers: list[dict[int, list[ResultRow]]] = [{} for _ in queries]
        for (k, sign), shards, places in zip(asked, *self.candidates.find(directed, top_k), strict=True):
            scores = self._exact_scores(weights[k], shards, places)
            best = np.argsort(-sign * scores, kind="stable")[: queries[k].top_k]
            answers[k][sign] = [
                self._result(rank, int(shards[c]), int(places[c]), float(scores[c]), queries[k])
                for rank, c in enumerate(best, start=1)
            ]
        return [(found.get(1), found.get(-1)) for found in answers]

    def _exact_scores(self, weights: Tensor, shards: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Scores [k] float32 from the stored rows: (C^-½ φ) · row over its lengths, block by block or as a whole."""
        scores = np.zeros(len(places), dtype=np.float32)
        for number in np.unique(shards):
            here = shards == number
            raw = self.shards[number].products(places[here], weights)
            lengths = torch.from_numpy(np.array(self.candidates.lengths[number][places[here]]))
            scores[here] = (raw * inverse(lengths)).sum(1).numpy()
        return scores

    def _result(self, rank: int, shard: int, place: int, score: float, query: AttributionQuery) -> ResultRow:
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
