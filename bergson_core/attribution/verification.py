"""Verifies results: each is unlearned for real and by itself, beside documents that are drawn at random.

What a step is stands in `unlearning`. V and η are fitted from a sample of the index's documents when a query first asks
for them, and kept. All of it goes step by step: between two steps the model is as it was, so that whoever takes them
may answer others in between, or take no more.
"""

import hashlib
import math
import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from bergson_core.attribution.unlearning import FIT_SAMPLE_SIZE, Unlearner
from bergson_core.data.batching import Tokens
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.tokenization import tokenize_stored
from bergson_core.schemas.query import VerifySpec
from bergson_core.schemas.results import Answer, Control, ResultRow, Verification, Verified
from bergson_core.search.searcher import Searcher
from bergson_core.storage.document_table import mask_of_ids, read_document
from bergson_core.storage.manifest import Manifest

T = TypeVar("T")
VerificationSteps = Generator[None, None, T]
"""Work that may be left off after each step; what it comes to is its value."""
RowLocation = tuple[int, int]
"""(number of the shard, number of the row in it) of a document."""


_DRAW_SIZES: Final = (256, 4096)
"""Of so many documents are some drawn, and of all only where too many of these do not count."""


@dataclass
class _UnlearnerFit:
    """V and η, or the steps that lead there, from the documents at these places."""

    locations: Sequence[RowLocation]
    steps: VerificationSteps[Unlearner]
    unlearner: Unlearner | None = None


class Verifier:
    """Unlearns documents of an index; `rows` has its shards, `model` is the one that it was built from.

    Several verifications may be under way, with their steps in any order. For one thread.
    """

    def __init__(self, manifest: Manifest, model: LanguageModel, rows: Searcher) -> None:
        self._manifest, self._model, self._rows = manifest, model, rows
        self._fit: _UnlearnerFit | None = None

    def verify(self, spec: VerifySpec, asked: Tokens, answer: Answer) -> VerificationSteps[Answer]:
        """`answer` with what unlearning its best rows does to the query, whose tokens are `asked`.

        Raises `InvalidInput` for an index of a training run, and for one whose documents have no gradient.
        """
        return _timed(self._verified(spec, asked, answer), answer)

    def _verified(self, spec: VerifySpec, asked: Tokens, answer: Answer) -> VerificationSteps[Answer]:
        self._check()
        unlearner = yield from self._fitted_unlearner()
        if spec.learning_rate is not None:
            unlearner = replace(unlearner, learning_rate=spec.learning_rate)
        lists = [answer.results or [], answer.opponents or []]
        results = self._locate_documents({row.id for rows in lists for row in rows[: spec.top]})
        shown = {row.id for rows in lists for row in rows}
        controls = self._draw_documents(spec.controls, _seed(answer), shown)
        effects: dict[str, Verified] = {}
        for one, place in (results | controls).items():
            (tokens,) = self._tokenize_documents([place])
            effects[one] = _effect(unlearner, asked, tokens)
            yield
        of_controls = [Control(id=one, **effects[one].model_dump()) for one in controls]

        def with_effects(rows: list[ResultRow] | None) -> list[ResultRow] | None:
            best = (rows or [])[: spec.top]
            verified = [row.model_copy(update={"verified": effects.get(row.id)}) for row in best]
            return None if rows is None else verified + rows[spec.top :]

        return answer.model_copy(
            update={
                "results": with_effects(answer.results),
                "opponents": with_effects(answer.opponents),
                "verification": Verification.from_controls(
                    unlearner.learning_rate, -answer.query.loss, of_controls
                ),
            }
        )

    def _check(self) -> None:
        if self._manifest.origin == "training":
            raise InvalidInput(
                "this index was made while its model was trained, from tokens that are not kept, so that its documents "
                "cannot be unlearned as they were learned: leave `verify` out"
            )

    def _fitted_unlearner(self) -> VerificationSteps[Unlearner]:
        """V and η. Where a verification was left off, the next goes on with them; they are fitted anew once a document
        of their sample is taken down."""
        while True:
            fit = self._fit
            if fit is None or not all(map(self._visible, fit.locations)):
                places = list(
                    self._draw_documents(FIT_SAMPLE_SIZE, self._manifest.spec.gradients.seed).values()
                )
                fit = self._fit = _UnlearnerFit(
                    places, Unlearner.fit_in_steps(self._model, self._tokenize_documents(places))
                )
            if fit.unlearner is not None:
                return fit.unlearner
            try:
                next(fit.steps)
            except StopIteration as end:
                fit.unlearner = end.value
                return end.value
            except BaseException:
                self._fit = None  # these steps have ended
                raise
            yield

    # Documents

    def _visible(self, place: RowLocation) -> bool:
        mask = self._rows.visible.masks()[place[0]]
        return mask is None or bool(mask[place[1]])

    def _locate_documents(self, ids: Collection[str]) -> dict[str, RowLocation]:
        """Where the documents of these ids are, but for those that were taken down by now."""
        found: dict[str, RowLocation] = {}
        for number, shard in enumerate(self._rows.shards):
            for place in np.flatnonzero(mask_of_ids(shard.documents, ids)).tolist():
                if self._visible((number, place)):
                    found[shard.documents["id"][place].as_py()] = (number, place)
        return {one: found[one] for one in sorted(found)}

    def _draw_documents(self, count: int, seed: int, without: Collection[str] = ()) -> dict[str, RowLocation]:
        """Documents drawn at random, the same for the same seed: shown, with a gradient, and of none of these ids."""
        ends = np.cumsum([shard.entry.rows for shard in self._rows.shards])
        found: dict[str, RowLocation] = {}
        for size in (*_DRAW_SIZES, int(ends[-1])):  # not by `count` or `without`: another size draws others
            generator = np.random.Generator(np.random.Philox(seed))
            for number in generator.choice(ends[-1], min(size, ends[-1]), replace=False).tolist():
                if len(found) == count:
                    return found
                shard = int(np.searchsorted(ends, number, "right"))
                texts = self._rows.shards[shard].documents
                place = number - int(ends[shard]) + self._rows.shards[shard].entry.rows
                one = texts["id"][place].as_py()
                learned = texts["loss"][place].is_valid and texts["n_tokens"][place].as_py() > 0
                if learned and one not in without and self._visible((shard, place)):
                    found[one] = (shard, place)
        return found

    def _tokenize_documents(self, places: Sequence[RowLocation]) -> list[Tokens]:
        """Tokens of the documents at these places, as the index was built from."""
        rows = [read_document(self._rows.shards[shard].documents, place) for shard, place in places]
        return tokenize_stored(rows, self._manifest.spec, self._model)


def _effect(unlearner: Unlearner, asked: Tokens, tokens: Tokens) -> Verified:
    """What one step on a document of these tokens changes. Before and after, both run side by side in the same way."""
    before = unlearner.log_probabilities([asked, tokens])
    with unlearner.temporary_step(tokens):
        after = unlearner.log_probabilities([asked, tokens])
    return Verified(
        log_probability=_finite(after[0] - before[0]),
        probability=_finite(np.exp(after[0]) - np.exp(before[0])),
        own_log_probability=_finite(after[1] - before[1]),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _seed(answer: Answer) -> int:
    """A number that is the same for the same prompt and completion."""
    text = f"{answer.query.prompt}\0{answer.query.completion}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _timed(steps: VerificationSteps[Answer], answer: Answer) -> VerificationSteps[Answer]:
    """`steps`, whose answer tells how long they took, without what was done between them."""
    spent_ms = 0.0
    while True:
        started = time.perf_counter()
        try:
            next(steps)
        except StopIteration as end:
            spent_ms += 1000 * (time.perf_counter() - started)
            timing = answer.timing_ms
            timing = timing.model_copy(update={"verify": spent_ms, "total": timing.total + spent_ms})
            return end.value.model_copy(update={"timing_ms": timing})
        spent_ms += 1000 * (time.perf_counter() - started)
        yield
