"""Verifies the results of a query: each is unlearned by itself, and so are random documents to compare it with.

Where it is asked for, all verified results of a direction are also unlearned together, by one step, beside random
groups of as many documents.

A document is unlearned by a step of an `Unlearner`, which is fitted from a sample of the index's documents when a query
needs it first, and kept. All work is divided into steps, between which the model has its own weights. So whoever runs
the steps can answer other queries in between, or give up.
"""

import hashlib
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bergson_core.attribution.document_selection import DocumentSelector, RowLocation
from bergson_core.attribution.follow_up.answer_steps import Steps, with_timing
from bergson_core.attribution.follow_up.unlearning_effects import unlearn
from bergson_core.attribution.unlearning import FIT_SAMPLE_SIZE, Unlearner
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.answer_parts.verification import (
    Control,
    GroupEffect,
    Together,
    Verification,
    Verified,
)
from bergson_core.schemas.query import VerifySpec
from bergson_core.schemas.results import Answer, ResultRow
from bergson_core.search.searcher import Searcher
from bergson_core.storage.manifest import Manifest
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.background import run_to_completion


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

    Attributes:
        selector: Selects the documents that are unlearned.
    """

    def __init__(self, manifest: Manifest, model: LanguageModel, searcher: Searcher) -> None:
        self._manifest, self._model = manifest, model
        self.selector = DocumentSelector(manifest, model, searcher)
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
        self.require_supported("leave `verify` out")
        unlearner = yield from self.fitted_unlearner()
        if spec.learning_rate is not None:
            unlearner = replace(unlearner, learning_rate=spec.learning_rate)
        lists = [answer.results or [], answer.opponents or []]
        results = self.selector.locate({row.id for rows in lists for row in rows[: spec.top]})
        shown = {row.chunk.document if row.chunk else row.id for rows in lists for row in rows}
        controls = self.selector.draw(spec.controls, _seed_of(answer), shown)
        effects: dict[str, Verified] = {}
        for document_id, location in (results | controls).items():
            documents = self.selector.tokenize([location])
            effects[document_id] = run_to_completion(unlearn(unlearner, query, documents))
            yield
        verification = Verification.from_controls(
            unlearner.learning_rate,
            -answer.query.loss,
            [Control(id=document_id, **effects[document_id].model_dump()) for document_id in controls],
        )
        if spec.together:
            groups = _GroupUnlearner(self.selector, unlearner, query, spec.controls, _seed_of(answer), shown)
            for name, rows in zip(("together", "opponents_together"), lists, strict=True):
                members = {row.id: results[row.id] for row in rows[: spec.top] if row.id in results}
                together = yield from groups.unlearn(members, effects)
                verification = verification.model_copy(update={name: together})
        return answer.model_copy(
            update={
                "results": _add_effects(answer.results, spec.top, effects),
                "opponents": _add_effects(answer.opponents, spec.top, effects),
                "verification": verification,
            }
        )

    def require_supported(self, advice: str) -> None:
        """Raises `InvalidInput`, with this advice, for an index that a training run has made."""
        if self._manifest.origin == "training":
            raise InvalidInput(
                "this index was made by a training run, whose tokens are not stored, so its documents cannot be "
                f"unlearned as they were learned: {advice}"
            )

    def fitted_unlearner(self) -> Generator[int, None, Unlearner]:
        """Returns the unlearner of the index, and yields 1 after each step of its fit.

        A fit that one verification has left unfinished is continued by the next one. The unlearner is fitted again
        after a document of its sample was taken down.
        """
        while True:
            if self._fit is None or not self.selector.is_visible(*self._fit.locations):
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
            yield 1

    def _begin_fit(self) -> _UnlearnerFit:
        sample = self.selector.draw(FIT_SAMPLE_SIZE, self._manifest.spec.gradients.seed)
        locations = list(sample.values())
        steps = Unlearner.fit_in_steps(self._model, self.selector.tokenize(locations))
        return _UnlearnerFit(locations, steps)


@dataclass
class _GroupUnlearner:
    """Unlearns groups of documents for one query, each by one step.

    Attributes:
        selector: Selects the documents.
        unlearner: Takes the steps.
        query: Tokens of the query.
        controls: How many random groups a group is compared with.
        seed: Seed of the draw of the random groups.
        shown: Ids of documents that are not drawn.
    """

    selector: DocumentSelector
    unlearner: Unlearner
    query: Sequence[Tokens]
    controls: int
    seed: int
    shown: Collection[str]
    _controls_by_size: dict[int, list[GroupEffect]] = field(default_factory=dict)

    def unlearn(
        self, members: Mapping[str, RowLocation], singles: Mapping[str, Verified]
    ) -> Steps[Together | None]:
        """Returns what unlearning some results together changes beside the sum of `singles` and random groups.

        It is None without any results.
        """
        if not members:
            return None
        size = len(members)
        effect = yield from self._unlearn_group(members)
        if size not in self._controls_by_size:
            self._controls_by_size[size] = yield from self._unlearn_random_groups(size)
        return Together.from_groups(
            effect, [singles[document_id] for document_id in members], self._controls_by_size[size]
        )

    def _unlearn_random_groups(self, size: int) -> Steps[list[GroupEffect]]:
        """Returns what unlearning random groups of this size changes; fewer groups where documents do not suffice."""
        drawn = list(self.selector.draw(size * self.controls, self.seed, self.shown).items())
        groups = []
        for start in range(0, len(drawn) - size + 1, size):
            effect = yield from self._unlearn_group(dict(drawn[start : start + size]))
            groups.append(effect)
        return groups

    def _unlearn_group(self, members: Mapping[str, RowLocation]) -> Steps[GroupEffect]:
        documents = self.selector.tokenize(list(members.values()))
        effect = yield from unlearn(self.unlearner, self.query, documents)
        return GroupEffect(ids=list(members), **effect.model_dump())


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
