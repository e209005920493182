"""Bodies of responses about indexes on disk: what `GET /index`, `bergson list` and `bergson info` show.

They are apart from `service.schemas` because the commands are to start fast, and all bodies together take a quarter of
a second to define.
"""

from typing import Any, Literal

from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.documents import Chunk, DocumentReport
from bergson_core.schemas.results import SizesBytes
from bergson_core.storage.manifest import NoticeEntry, SearchEntry
from worker.problem import Problem


class IndexSummary(ResultModel):
    """An index that is published or being built. A field that is not known yet is null."""

    name: str
    state: Literal["ready", "building", "corrupt"]
    """`ready` answers queries, `building` has a running job, and `corrupt` has a manifest that cannot be read."""
    job_id: str | None = None
    """The job that builds the index, if the state is `building`."""
    error: Problem | None = None
    """Why the manifest cannot be read, if the state is `corrupt`."""
    generation: int | None = None
    """Number of the index's current version; each change of the index increases it by one."""
    created_at: str | None = None
    model: str | None = None
    rows: int | None = None
    """Documents in the index."""
    tokens: int | None = None
    """Tokens of all documents together."""
    skipped: int | None = None
    """Documents that no query can find, because their gradients were not finite. The worker's log names them."""
    modules: int | None = None
    """Modules of the model whose gradients are tracked."""
    dimensions: int | None = None
    """Numbers stored for each document."""
    coverage_percent: float | None = None
    """Percentage of the model's parameters that belong to tracked modules."""
    size_bytes: SizesBytes | None = None


class IndexDetail(IndexSummary):
    """An index with the spec from which it was built."""

    spec: BuildSpec | None = None
    """The spec with its defaults filled in. Inline documents are left out, so that their list is empty."""
    fingerprint: str | None = None
    """sha256 of the spec."""
    model_sha256: str | None = None
    """Hash of the model's config, weights and tokenizer."""
    documents: DocumentReport | None = None
    """Documents that were left out or cut, because they could not be indexed as they stand."""
    profiles: list[str] = []
    """Profiles that a query may name in its field `profile`."""
    taken_down: int | None = None
    """Documents that were taken down so far, and that no answer shows."""
    compacted: int | None = None
    """Documents among these whose bytes were removed. `POST /index/{name}/compact` removes those of the others."""
    search: SearchEntry | None = None
    """How the search finds candidates, and how many of the ten best rows are among them, if that was measured."""
    notice: NoticeEntry | None = None
    """When an answer claims an influence, and how often it does so falsely; null if the index has too few rows to
    tell, or was built without being measured."""


class DocumentDetail(ResultModel):
    """A training document in the index."""

    index: str
    id: str
    prompt: str | None
    """Text of the document, or its prompt. Null, like completion, rejected and metadata, if the API key may see no
    text."""
    completion: str | None = None
    """Completion of the document; of a preference pair, the chosen one."""
    rejected: str | None = None
    """The rejected completion of a preference pair."""
    metadata: dict[str, Any] | None
    loss: float | None
    """Sum of the cross-entropies of the document's labelled tokens under the model, in nats; of a preference pair, the
    loss of DPO. Null if the document was skipped."""
    n_tokens: int
    """Labelled tokens of the document, over which the loss is taken."""
    chunk: Chunk | None = None
    """What the text is a part of, if the document was too long and was cut."""
    chunks: list[str] | None = None
    """Ids of the chunks, if this is a document that was cut into chunks. The text is then that of all of them, and loss
    and n_tokens are sums over them."""

    def without_text(self) -> "DocumentDetail":
        """Returns the document for a caller who may see no text."""
        return self.model_copy(
            update={"prompt": None, "completion": None, "rejected": None, "metadata": None}
        )


class IndexPage(ResultModel):
    """A page of indexes, in the order of their names."""

    items: list[IndexSummary]
    next_cursor: str | None = None
    """Value of `cursor` for the next page; null on the last page."""
