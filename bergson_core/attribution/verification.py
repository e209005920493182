"""Verifies the results of a query: each is unlearned by itself, and so are random documents to compare it with.

A document is unlearned by a step of an `Unlearner`, which is fitted from a sample of the index's documents when a query
needs it first, and kept. All work is divided into steps, between which the model has its own weights. So whoever runs
the steps can answer other queries in between, or give up.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from bergson_core.attribution.document_selection import DocumentSelector, RowLocation
from bergson_core.attribution.follow_up.answer_steps import Steps, with_timing
from bergson_core.attribution.unlearning import FIT_SAMPLE_SIZE, Unlearner
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.query import VerifySpec
from bergson_core.schemas.results import Answer, Control, ResultRow, Verification, Verified
from bergson_core.search.searcher import Searcher
from bergson_core.storage.manifest import Manifest
from bergson_core.tokens.tokenization import Tokens


@dataclass
class _UnlearnerFit:
    """The fit of an unlearner from the documents at these locations: its steps, and the unlearner once it is fitted."""

    locations: Sequence[RowLocation]
    steps: Steps[Unlearner]
    unlearner: Unlearner | None = None


class Verifier:
    """Verifies results by unlearning documents of an index. For use by one thread.

    Several verifications may be under way at a time, and their steps may be taken in any order.

    Args:
        manifest: Manifest of the index.
        model: The model that the index was built from.
        searcher: The shards of the index.
    """

    def __init__(self, manifest: Manifest, model: LanguageModel, searcher: Searcher) -> None:
        self._manifest, self._model = manifest, model
        self._selector = DocumentSelector(manifest, model, searcher)
        self._fit: _UnlearnerFit | None = None

    def verify(self, spec: VerifySpec, query: Sequence[Tokens], answer: Answer) -> Steps[Answer]:
        """Returns the answer with what unlearning its best results changes, and yields after each step.

        Args:
            spec: What to unlearn.
            query: Tokens of the query (`TokenizedQuery.weighted_tokens`).
            answer: The answer to the query.

        Raises:
            InvalidInput: The index was made by a training run, or none of its documents has a gradient.
        """
        return with_timing(self._verify(spec, query, answer), answer, "verify")

    def _verify(self, spec: VerifySpec, query: Sequence[Tokens], answer: Answer) -> Steps[Answer]:
        self._require_supported()
        unlearner = yield from self._fitted_unlearner()
        if spec.learning_rate is not None:
            unlearner = replace(unlearner, learning_rate=spec.learning_rate)
        lists = [answer.results or [], answer.opponents or []]
        results = self._selector.locate({row.id for rows in lists for row in rows[: spec.top]})
        shown = {row.chunk.document if row.chunk else row.id for rows in lists for row in rows}
        controls = self._selector.draw(spec.controls, _seed_of(answer), shown)
        effects: dict[str, Verified] = {}
        for document_id, location in (results | controls).items():
            (document,) = self._selector.tokenize([location])
            effects[document_id] = _unlearn(unlearner, query, document)
            yield
        verification = Verification.from_controls(
            unlearner.learning_rate,
            -answer.query.loss,
            [Control(id=document_id, **effects[document_id].model_dump()) for document_id in controls],
        )
        return answer.model_copy(
            update={
                "results": _add_effects(answer.results, spec.top, effects),
                "opponents": _add_effects(answer.opponents, spec.top, effects),
                "verification": verification,
            }
        )

    def _require_supported(self) -> None:
        """Raises `InvalidInput` for an index that a training run has made."""
        if self._manifest.origin == "training":
            raise InvalidInput(
                "this index was made by a training run, whose tokens are not stored, so its documents cannot be "
                "unlearned as they were learned: leave `verify` out"
            )

    def _fitted_unlearner(self) -> Steps[Unlearner]:
        """Returns the unlearner of the index, and yields after each step of its fit.

        A fit that one verification has left unfinished is continued by the next one. The unlearner is fitted again
        after a document of its sample was taken down.
        """
        while True:
            if self._fit is None or not all(map(self._selector.is_visible, self._fit.locations)):
                self._fit = self._begin_fit()
            fit = self._fit
            if fit.unlearner is not None:
                return fit.unlearner
            try:
                next(fit.steps)
            except StopIteration as end:
                fit.unlearner = end.value
                return end.value
            except BaseException:
                self._fit = None  # a generator that has raised cannot be continued
                raise
            yield

    def _begin_fit(self) -> _UnlearnerFit:
        sample = self._selector.draw(FIT_SAMPLE_SIZE, self._manifest.spec.gradients.seed)
        locations = list(sample.values())
        steps = Unlearner.fit_in_steps(self._model, self._selector.tokenize(locations))
        return _UnlearnerFit(locations, steps)


def _unlearn(unlearner: Unlearner, query: Sequence[Tokens], document: Tokens) -> Verified:
    """Returns what one step on the document changes.

    Query and document are in one batch before and after the step, so that both passes are rounded in the same way.
    """
    before = unlearner.log_probabilities([*query, document])
    with unlearner.temporary_step(document):
        after = unlearner.log_probabilities([*query, document])
    change = after - before
    return Verified(
        log_probability=_finite_or_none(change[0] if len(query) == 1 else change[0] - change[1]),
        probability=_finite_or_none(_share(after[:-1]) - _share(before[:-1])),
        own_log_probability=_finite_or_none(change[-1]),
    )


def _share(log_probabilities: Float64[np.ndarray, " _"]) -> float:
    """Returns the probability of a text, or its share of the probability of two."""
    if len(log_probabilities) == 1:
        return np.exp(log_probabilities[0])
    return 1 / (1 + np.exp(log_probabilities[1] - log_probabilities[0]))


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _add_effects(
    rows: list[ResultRow] | None, top: int, effects: Mapping[str, Verified]
) -> list[ResultRow] | None:
    """Returns the rows of one direction, the first `top` of them with what unlearning them changed."""
    if rows is None:
        return None
    verified = [row.model_copy(update={"verified": effects.get(row.id)}) for row in rows[:top]]
    return verified + rows[top:]


def _seed_of(answer: Answer) -> int:
    """Returns a seed that is the same for the same prompt and completion."""
    text = f"{answer.query.prompt}\0{answer.query.completion}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
