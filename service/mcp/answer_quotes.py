"""What the tools return of answers: the question as it was answered, quoted documents, sums of influence."""

from typing import Any, Final, Self

from bergson_core.schemas.answer_parts.groups import ResultGroup, Strength
from bergson_core.schemas.answer_parts.verification import Verification, Verified
from bergson_core.schemas.answer_parts.words import WordMatch
from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.documents import Chunk
from bergson_core.schemas.results import ResultRow
from service.mcp.results import UNTRUSTED
from service.schemas import AttributeResponse, TotalsResponse

_MAX_GROUP_IDS: Final = 20


class QuotedGroup(ResultModel):
    """Documents that belong together, of which the answer quotes the best one."""

    untrusted_value: Any
    """Value that the documents have in the column of `group_by`; null for near-duplicates."""
    score: float
    """Sum of the scores of the documents."""
    interval: tuple[float, float] | None
    """[low, high]: where this sum lies on average over all random projections, in nine of ten cases."""
    strength: Strength | None
    """How strong the mean of the scores is, as of a document."""
    documents: int
    """Number of documents of the group among the 1,000 best of the direction."""
    ids: list[str]
    """Ids of the first 20 of them, the best first."""

    @classmethod
    def of(cls, group: ResultGroup) -> Self:
        """Returns the quotation of a group."""
        ids = [member.id for member in group.members[:_MAX_GROUP_IDS]]
        return cls(
            untrusted_value=group.value,
            score=group.score,
            interval=group.interval,
            strength=group.strength,
            documents=group.count,
            ids=ids,
        )


class QuotedDocument(ResultModel):
    """A training document and its influence on what the model said."""

    rank: int
    """Place among the documents of its direction, from 1."""
    id: str
    """Id of the document, for `look_at_document`."""
    score: float
    """Influence of the document. Positive scores made the completion more likely."""
    exact: bool
    """Whether the score is that of whole gradients (`rescore`), without the noise of the projection."""
    interval: tuple[float, float] | None
    """[low, high]: where the score lies on average over all random projections, in nine of ten cases. Null for an exact
    score, which has no such noise."""
    strength: Strength | None
    """`strong`: the document stands out, in spite of the noise of its score. `weak`: it stands out, or the noise does
    not explain its score, but not both. `none`: as random documents. Null where this is not known."""
    percentile: float | None
    """Percentage of random documents of the index that score lower for this query."""
    loss: float | None
    """Sum of the cross-entropies of the document's tokens under the model, in nats."""
    untrusted_text: str | None
    """The beginning of the document. Null for an API key that may see no text."""
    untrusted_completion: str | None
    """The beginning of the document's completion, if documents have any; of a preference pair, the chosen one."""
    untrusted_rejected: str | None
    """The beginning of the rejected completion of a preference pair."""
    is_cut: bool
    """Whether the document goes on after what is quoted: `look_at_document` has the rest."""
    untrusted_metadata: dict[str, Any] | None
    """The document's metadata."""
    chunk: Chunk | None
    """What the text is a part of, if the document was too long and was cut."""
    words: WordMatch | None
    """Whether the document states the completion, if that was asked for: a document may have influence without it."""
    group: QuotedGroup | None
    """The documents that this one stands for, if `group_by` folds documents."""
    verified: Verified | None
    """What unlearning the document changed, for the best documents if `verify` asks for it. Compare it with
    `verification.mean`."""

    @classmethod
    def of(cls, row: ResultRow, max_characters: int) -> Self:
        """Returns the quotation of a result, with at most so many characters of each text."""
        texts = (row.prompt, row.completion, row.rejected)
        text, completion, rejected = (None if each is None else each[:max_characters] for each in texts)
        return cls(
            rank=row.rank,
            id=row.id,
            score=row.score,
            exact=row.exact,
            interval=row.interval,
            strength=row.strength,
            percentile=row.percentile,
            loss=row.loss,
            untrusted_text=text,
            untrusted_completion=completion,
            untrusted_rejected=rejected,
            is_cut=any(len(each or "") > max_characters for each in texts),
            untrusted_metadata=row.metadata,
            chunk=row.chunk,
            words=row.words,
            group=row.group and QuotedGroup.of(row.group),
            verified=row.verified,
        )


class AnsweredQuestion(ResultModel):
    """The question as it was answered."""

    about_untrusted_fields: str = UNTRUSTED
    index: str
    generation: int
    """Version of the index that answered."""
    profile: str
    """Weighting of the gradients that the scores are of."""
    prompt: str | None
    """Text before the completion; null for a behaviour."""
    completion: str | None
    """The completion that is explained, as it was given or as the model generated it; null for a behaviour."""
    behaviour: str | None
    """The behaviour that is explained."""
    instead_of_behaviour: str | None
    """The other behaviour, whose scores are subtracted."""
    generated: bool
    """Whether the model generated the completion."""
    instead_of: str | None
    """The other completion that this one is contrasted with."""
    loss: float
    """Sum of the cross-entropies of the completion's tokens, in nats: how surprised the model is by it. Of a behaviour,
    the mean over its queries."""
    instead_of_loss: float | None
    """The same of the other completion or behaviour. Where `loss` is the lower, the model says the completion rather
    than the other one."""
    tokens: int
    """Number of the completion's tokens, of all queries of a behaviour together."""
    warnings: list[str]
    """What was probably not meant about the question, such as a completion without its leading space."""


def _question_fields(answer: AttributeResponse | TotalsResponse) -> dict[str, Any]:
    """Returns the fields of `AnsweredQuestion`."""
    query = answer.query
    return {
        "index": answer.index,
        "generation": answer.generation,
        "profile": answer.profile,
        "prompt": query.prompt,
        "completion": query.completion,
        "behaviour": query.behaviour,
        "instead_of_behaviour": query.instead_of_behaviour,
        "generated": query.generated,
        "instead_of": query.instead_of,
        "loss": query.loss,
        "instead_of_loss": query.instead_of_loss,
        "tokens": query.n_tokens,
        "warnings": [
            warning.detail + (f" (probably meant: {warning.suggestion!r})" if warning.suggestion else "")
            for warning in answer.warnings
        ],
    }


class AnswerQuote(AnsweredQuestion):
    """The training documents behind what a model said."""

    proponents: list[QuotedDocument] | None
    """Documents that made the completion more likely, the strongest first; null unless they were asked for."""
    opponents: list[QuotedDocument] | None
    """Documents that made the completion less likely, the strongest first; null unless they were asked for."""
    notice: str | None
    """Says so if no document stands out from random ones. The scores then show no influence."""
    verification: Verification | None
    """What unlearning random documents changed, if `verify` asks for it: what a step on any document does."""
    partial: bool
    """Whether damaged parts of the index were left out."""

    @classmethod
    def of(cls, answer: AttributeResponse, max_characters: int) -> Self:
        """Returns an answer of the service with at most so many characters of each document."""

        def quote(rows: list[ResultRow] | None) -> list[QuotedDocument] | None:
            return None if rows is None else [QuotedDocument.of(row, max_characters) for row in rows]

        return cls(
            **_question_fields(answer),
            proponents=quote(answer.results),
            opponents=quote(answer.opponents),
            notice=answer.notice,
            verification=answer.verification,
            partial=answer.partial,
        )


class QuotedTotal(ResultModel):
    """The documents with one value of a metadata column, and the sum of their scores."""

    untrusted_value: Any
    """The value; null for documents that have none."""
    documents: int
    """Number of documents."""
    sum: float
    """Sum of their scores, after the threshold. Scores have both signs, so that a sum is a balance."""
    mean: float
    """The sum, divided by the number of documents."""
    interval: tuple[float, float] | None
    """[low, high]: where the sum lies on average over all random projections, in nine of ten cases. Null where this is
    not known."""


class TotalsQuote(AnsweredQuestion):
    """The influence of all documents on what a model said, summed by a metadata column."""

    by: str
    """The metadata column."""
    threshold: float
    """Width of the threshold below which a score counts as 0, in units of the noise of the scores."""
    groups: list[QuotedTotal]
    """The groups with the largest sums, the largest first."""
    group_count: int
    """Number of groups, also of those that are not listed."""
    documents: int
    """Number of documents of all groups."""
    sum: float
    """Sum of the scores of all groups."""
    partial: bool
    """Whether damaged parts of the index were left out."""

    @classmethod
    def of(cls, totals: TotalsResponse) -> Self:
        """Returns the totals of the service."""
        return cls(
            **_question_fields(totals),
            by=totals.by,
            threshold=totals.threshold,
            groups=[
                QuotedTotal(untrusted_value=group.value, **group.model_dump(exclude={"value"}))
                for group in totals.groups
            ],
            group_count=totals.group_count,
            documents=totals.documents,
            sum=totals.sum,
            partial=totals.partial,
        )


class KeptAnswer(ResultModel):
    """An answer that the service has kept under a link."""

    about_untrusted_fields: str = UNTRUSTED
    stale: bool
    """Whether the index has changed since, so that the same question may have another answer now."""
    removed: int
    """Documents of the answer that the index no longer has."""
    expires_at: float
    """Time at which the link ends, Unix time in seconds."""
    answer: AnswerQuote | None
    """The answer; null if the index is gone."""
