"""What comes back: the progress of a build, the estimate of a build, and the answer to a query.

The library returns these classes, Redis carries them as JSON, and the HTTP API shows them.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from bergson_core.schemas.answer_parts.background import BackgroundScores
from bergson_core.schemas.answer_parts.groups import ResultGroup, Strength
from bergson_core.schemas.answer_parts.result_tables import ANSWER_KEY, results_table
from bergson_core.schemas.answer_parts.verification import Verification, Verified
from bergson_core.schemas.answer_parts.words import WordMatch
from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.build import SearchKind
from bergson_core.schemas.documents import Chunk, DocumentReport

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Progress(ResultModel):
    """How far a build is. Each stage counts from 0."""

    stage: str = "queued"
    """Current stage: queued, load, read, statistics, gradients, preconditioner, search, measure or done. A job that was
    asked to stop is cancelling until what it computes has ended."""
    done: int = 0
    """Number of units of this stage that are done."""
    total: int = 0
    """Number of units in this stage; 0 while it is unknown."""
    unit: str = "documents"
    """What is counted."""
    tokens_per_s: float | None = None
    """Tokens of this stage per second of this run; null while no token was read."""
    eta_s: float | None = None
    """Seconds until this stage ends, at its rate so far."""
    documents: DocumentReport | None = None
    """Documents that are left out or cut, as far as they were read; in the stages read and done."""


class SizesBytes(ResultModel):
    """Bytes on disk."""

    rows: int
    """The shards: gradients and the text of the documents."""
    search: int
    """The FAISS index."""
    statistics: int
    """Normalizers, projections and preconditioners."""
    total: int
    """All of these together."""


class Estimate(ResultModel):
    """What a build would take on the machine that ran the estimate.

    If only a sample of the documents was read, then tokens, bytes on disk and seconds are extrapolated from it.
    """

    documents: int
    """Documents of the index: those in the dataset, or what they are cut into."""
    looked_at: int
    """Documents that were read and tokenised: all of them, or a random sample."""
    tokens: int
    """Labelled tokens, as the index counts them."""
    modules: int
    """Modules whose gradients are tracked."""
    dimensions: int
    """Numbers stored for each document."""
    coverage_percent: float
    """Share of the model's parameters that the tracked modules hold."""
    search: SearchKind
    """How candidates would be found, if that reaches `min_recall`. A `rabitq` that `auto` has chosen falls back to
    `float16` otherwise."""
    size_bytes: SizesBytes
    """The finished index."""
    peak_disk_bytes: int
    """The index and the temporary files of the build, without the cached dataset."""
    peak_memory_bytes: int
    """Peak resident memory of the process that builds, mapped files included."""
    peak_device_bytes: int | None = None
    """Peak memory on the GPU; null without one."""
    seconds: float
    """Duration of the build at the measured rates, if nothing else runs."""


class TokenInfluence(ResultModel):
    """A token of a training document and its part of the document's score."""

    token: str
    """Characters of the text that the token stands for, or the token's name if it stands for none."""
    start: int | None
    """The token's characters are [start, end) of the prompt followed by the completion. Null if it stands for none of
    them, and in chats, whose text is made by the template."""
    end: int | None
    """See `start`."""
    sequence: Literal["chosen", "rejected"] | None = None
    """For a preference pair: the completion that the token belongs to. The model reads the prompt with both
    completions, so its tokens appear twice. `start` and `end` count from the beginning of the prompt in both."""
    influence: float
    """What the token's position adds to the score. The influences of all tokens sum to the score."""


class ResultRow(ResultModel):
    """A training document and its influence on what the model said."""

    rank: int
    """Place among the results in its direction, from 1."""
    id: str
    """Id of the document."""
    score: float
    """Influence of the document on the loss of the completion, as the profile scales it. Positive scores made the
    completion more likely."""
    exact: bool = False
    """Whether the score is that of the whole gradients (`rescore`). Otherwise it is that of the projected rows of the
    index."""
    interval: tuple[float, float] | None = None
    """[low, high]: contains the mean of the score over all random projections in nine of ten cases, given the rank of
    the result. It shows only the noise of the projection. Null for an exact score, which has no such noise, and if the
    rows of the index do not show their noise."""
    strength: Strength | None = None
    """How strong the influence is. `strong`: the score is above the threshold of the notice, and the whole interval is
    above the 99th percentile of random documents. `weak`: only one of the two holds. `none`: neither holds. The
    strength is always that of the index's score. Null for opponents, under a profile other than the default, and if the
    index has no threshold or its rows do not show their noise."""
    percentile: float | None = None
    """Percentage of random documents of the index that score lower for this query. It always compares scores of the
    index, even if `score` is exact. Null if there are no documents to compare with."""
    prompt: str | None = None
    """Text of the document, or its prompt; a chat as JSON. Null unless `include` asks for `text`."""
    completion: str | None = None
    """Completion of the document; for a preference pair, the chosen one. Null if the document has none, and unless
    `include` asks for `text`."""
    rejected: str | None = None
    """The rejected completion of a preference pair; null for other documents, and unless `include` asks for `text`."""
    metadata: dict[str, Any] | None = None
    """Metadata columns of the document; null unless `include` asks for them."""
    loss: float | None
    """Sum of the cross-entropies of the document's tokens under the indexed model, in nats; for a preference pair, the
    loss of DPO. Null if the document was skipped because its gradient was not finite."""
    modules: dict[str, float] | None = None
    """Each module's part of the score, if `include` asks for it. The parts sum to the score."""
    tokens: list[TokenInfluence] | None = None
    """Each token's part of the score, if `include` asks for it. The parts sum to the score. Null for a result that
    `rescore` has not scored exactly."""
    group: ResultGroup | None = None
    """The documents of the result's group, if `group_by` makes groups."""
    chunk: Chunk | None = None
    """The document that the text is a part of, if it was too long and was cut."""
    words: WordMatch | None = None
    """Whether the document states the completion, and its rank by words, if `include` has `words` or `order` is another
    than `influence`."""
    verified: Verified | None = None
    """What unlearning the document changed, for the best results if `verify` asks for it."""


class Rescored(ResultModel):
    """How many candidates were scored by their whole gradients, in all directions of the query together."""

    candidates: int
    """Number of candidates. A document that is a candidate in both directions counts once."""
    exact: int
    """Documents that were scored in time: the results are the best of these. The best candidates by the scores of the
    index are scored first."""


class QueryEcho(ResultModel):
    """The query as it was answered."""

    prompt: str | None = None
    """Text before the completion. For a chat, the rendered text before the last turn of the assistant. Null for a
    behaviour."""
    completion: str | None = None
    """The completion that is explained: as it was given, with the space that `join` added, or as the model generated
    it. For a chat, the last turn of the assistant with the token that ends it; `loss` and `n_tokens` are those of all
    messages of the assistant."""
    generated: bool = False
    """Whether the model generated the completion."""
    token_ids: list[int] | None = None
    """Ids of the tokens that the model generated and that are explained, without the EOS that ended the completion.
    Null for a completion that was given."""
    behaviour: str | None = None
    """Name of the behaviour that was asked for instead of a completion."""
    loss: float
    """Sum of the cross-entropies of the tokens of the completion, or of its span, in nats. For a behaviour, the mean of
    these sums over its queries."""
    losses_between: tuple[float, float] | None = None
    """The loss at the earlier and at the later checkpoint of `between`. If the first is higher, the later model finds
    the completion more likely than the earlier one."""
    n_tokens: int
    """Number of tokens of the completion, or of its span; for a behaviour, of all its queries together."""
    instead_of: str | None = None
    """The other completion that this one is contrasted with, as it was tokenised."""
    instead_of_behaviour: str | None = None
    """The other behaviour, whose scores were subtracted."""
    instead_of_loss: float | None = None
    """Sum of the cross-entropies of the tokens of `instead_of`, in nats. If it is higher than `loss`, the model finds
    the completion more likely than `instead_of`. For `instead_of_behaviour`, the mean of these sums over its
    queries."""


class QueryWarning(ResultModel):
    """A probable mistake in a query. The query is answered nevertheless, as it is."""

    code: str
    """`missing_space`: prompt and completion meet without the space that the tokenizer expects before a word.
    `double_space`: both have a space there. `trailing_space`: the completion was generated after a prompt that ends
    with a space. `not_learned`: the later checkpoint of `between` does not make the completion more likely than the
    earlier one. `unlikely_contrast`: the model almost never says the completion or `instead_of`, so that their contrast
    shows noise."""
    detail: str
    """What was found, and how the text was tokenised."""
    suggestion: str | None = None
    """What was probably meant: the completion, or, for `trailing_space`, the prompt."""


class TimingMs(ResultModel):
    """How long the parts of an answer took, in milliseconds.

    `queue` is the time until a worker takes the query and has loaded the index. `gradient` and `search` are those of
    all queries that were answered together; `search` includes the passes through the model that `tokens` take.
    `rescore`, `words` and `verify` are those of this query; time for other queries between their steps counts as
    `queue`.
    """

    queue: float = 0.0
    """Time until a worker took the query and had the index open."""
    gradient: float
    """Tokenising, generating and the gradient."""
    search: float
    """Finding and scoring the documents."""
    rescore: float = 0.0
    """Scoring candidates by their whole gradients."""
    words: float = 0.0
    """Comparing words; for the first such query of an index, also reading the words of all documents."""
    verify: float = 0.0
    """Unlearning documents."""
    total: float
    """From the arrival of the query to its answer."""


class Answer(ResultModel):
    """The training documents behind one completion. `results` is null if only opponents were asked for."""

    index: str
    """Name of the index."""
    generation: int
    """Generation of the index that answered."""
    profile: str = "default"
    """Profile that the scores are of."""
    query: QueryEcho
    results: list[ResultRow] | None = None
    """The documents that made the completion more likely, best first; in another order if `order` asks for it."""
    opponents: list[ResultRow] | None = None
    """The documents that made the completion less likely, the strongest first; null unless `direction` asks for
    them."""
    notice: str | None = None
    """`no strong influence found` if the best result by the scores of the index stands out no more than the best result
    of a query whose completion no document states."""
    background: BackgroundScores | None = None
    """How the scores of random documents for this query are distributed, if `include` asks for it. They are always
    scores of the index, also where those of the results are exact. Null if no document was drawn."""
    warnings: list[QueryWarning] = []
    """Probable mistakes in the query, such as a completion without its leading space."""
    rescored: Rescored | None = None
    """How many candidates were scored exactly, if `rescore` asks for it."""
    verification: Verification | None = None
    """What unlearning random documents did, if `verify` asks for it."""
    partial: bool = False
    """Whether damaged shards of the index were left out."""
    timing_ms: TimingMs

    def to_table(self) -> "pa.Table":
        """Returns the results as an Arrow table.

        Returns:
            A row for each result, the proponents first, with the column `direction` (`proponents` or `opponents`) and a
            column for each field of `ResultRow`. `metadata`, `modules` and `group` are JSON text. The key
            `bergson.answer` in the metadata of the schema has the rest of the answer as JSON.
        """
        table = results_table({"proponents": self.results, "opponents": self.opponents}, ResultRow)
        rest = self.model_dump_json(exclude={"results", "opponents"})
        return table.replace_schema_metadata({ANSWER_KEY: rest.encode()})

    def to_pandas(self) -> "pd.DataFrame":
        """Returns the results as a DataFrame of pandas, which has to be installed: the columns of `to_table`."""
        return self.to_table().to_pandas()

    def without(self, ids: Collection[str]) -> "Answer":
        """Returns the answer without the documents that have these ids; the other results are ranked again."""

        def remove(rows: list[ResultRow] | None) -> list[ResultRow] | None:
            if rows is None:
                return None
            remaining = (
                row for row in rows if row.id not in ids and not (row.chunk and row.chunk.document in ids)
            )
            return [
                row.model_copy(update={"rank": rank, "group": row.group and row.group.without(ids)})
                for rank, row in enumerate(remaining, start=1)
            ]

        if not ids:
            return self
        lists = {"results": remove(self.results), "opponents": remove(self.opponents)}
        verification = self.verification and self.verification.without(ids)
        return self.model_copy(update=lists | {"verification": verification})
