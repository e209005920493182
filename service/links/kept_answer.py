"""What is kept of an answer, and how it is shown again.

No text and no metadata of a document is kept: they are read from the index each time that the answer is shown. So a
document that was taken down is shown by no link, and its bytes are gone with a compaction or with the index. What is
kept of a text is a hash, because an id may be used again after a takedown: a document whose text is another one is not
the document of the answer.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.results import ResultRow, TokenInfluence
from service.auth.texts import without_row_texts, without_texts
from service.schemas import AttributeRequest, AttributeResponse

LINK_ID_PATTERN: Final = "^[0-9a-f]{40}$"

Document = dict[str, Any]
"""A document as `storage.document_lookup` returns it."""


class KeptAnswer(ResultModel):
    """The content of the file of a link."""

    format: Literal[1] = 1
    id: str = Field(pattern=LINK_ID_PATTERN)
    request: AttributeRequest
    """The fields that the caller has given."""
    fingerprint: str | None
    """The fingerprint of the index that answered."""
    created_at: float
    """Unix time in seconds."""
    expires_at: float
    """Unix time in seconds."""
    answer: AttributeResponse
    """The answer without texts."""
    texts_sha256: dict[str, str]
    """The hash of the text of each document of the answer, by id."""


def keep_answer(
    link_id: str,
    request: AttributeRequest,
    answer: AttributeResponse,
    root: Path,
    *,
    fingerprint: str | None,
    created_at: float,
    expires_at: float,
) -> KeptAnswer:
    """Returns what is kept of an answer. A document that the index has no longer is left out.

    Args:
        link_id: Id of the link.
        request: The request that was answered.
        answer: The answer of the service.
        root: Directory of the index.
        fingerprint: The fingerprint of the index.
        created_at: Time at which the link is made, Unix time in seconds.
        expires_at: Time at which it ends, Unix time in seconds.

    Raises:
        IndexNotFound: The index was deleted before its answer was kept.
        IndexCorrupt: A document of the answer cannot be read.
    """
    documents = _find_documents(root, _document_ids(answer))
    present = _without_others(answer, documents)
    kept = without_texts(present)
    return KeptAnswer(
        id=link_id,
        request=request,
        fingerprint=fingerprint,
        created_at=created_at,
        expires_at=expires_at,
        answer=kept.model_copy(
            update={
                "results": _keep_parts(present.results, kept.results),
                "opponents": _keep_parts(present.opponents, kept.opponents),
            }
        ),
        texts_sha256={
            document_id: _hash_text(link_id, document) for document_id, document in documents.items()
        },
    )


def show_answer(kept: KeptAnswer, root: Path, *, with_texts: bool) -> AttributeResponse:
    """Returns a kept answer without the documents that the index no longer has.

    Args:
        kept: What was kept.
        root: Directory of the index.
        with_texts: Whether the caller may see texts. The answer then has those that its request asked for.

    Raises:
        IndexNotFound: The index was deleted.
        IndexCorrupt: A document of the answer cannot be read.
    """
    found = _find_documents(root, kept.texts_sha256)
    documents = {
        document_id: document
        for document_id, document in found.items()
        if _hash_text(kept.id, document) == kept.texts_sha256[document_id]
    }
    answer = _without_others(kept.answer, documents)
    if not with_texts:
        return without_texts(answer)
    lists = {
        name: None if rows is None else [_with_texts(row, documents[row.id], kept.request) for row in rows]
        for name, rows in (("results", answer.results), ("opponents", answer.opponents))
    }
    return answer.model_copy(update=lists)


def count_documents(answer: AttributeResponse) -> int:
    """Returns the number of the results of an answer, in both directions."""
    return len(answer.results or ()) + len(answer.opponents or ())


def _find_documents(root: Path, ids: Iterable[str]) -> dict[str, Document]:
    # pyarrow is slow to load, and most web processes never need it.
    from bergson_core.storage.document_lookup import find_documents

    return find_documents(root, ids)


def _document_ids(answer: AttributeResponse) -> set[str]:
    """Returns the ids of all documents that an answer names: results, random documents, and groups of either."""
    parts = [*(answer.results or ()), *(answer.opponents or ()), answer.verification]
    excluded = {"tokens": True, "metadata": True, "modules": True, "group": {"value"}}
    return set(_iter_ids([part.model_dump(exclude=excluded) for part in parts if part]))


def _iter_ids(value: object) -> Iterator[str]:
    """Yields what is named `id`, and each of what is named `ids`, in a value as JSON has it."""
    if isinstance(value, list):
        for item in value:
            yield from _iter_ids(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in ("id", "ids"):
                yield from [item] if name == "id" else item
            else:
                yield from _iter_ids(item)


def _without_others(answer: AttributeResponse, documents: Mapping[str, Document]) -> AttributeResponse:
    """Returns the answer without the results and controls that are not among the documents."""
    remaining = answer.without(_document_ids(answer) - documents.keys())
    assert isinstance(remaining, AttributeResponse)
    return remaining


def _hash_text(link_id: str, document: Document) -> str:
    """Returns the sha256 of a document's text, which differs from link to link."""
    content = json.dumps([link_id, document["prompt"], document["completion"], document["rejected"]])
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()


def _keep_parts(rows: list[ResultRow] | None, kept: list[ResultRow] | None) -> list[ResultRow] | None:
    """Returns the rows `kept` with the words of `rows`, and with their tokens, whose texts are left out."""
    if rows is None or kept is None:
        return None
    return [
        new.model_copy(update={"tokens": _without_token_texts(row.tokens), "words": row.words})
        for row, new in zip(rows, kept, strict=True)
    ]


def _without_token_texts(tokens: list[TokenInfluence] | None) -> list[TokenInfluence] | None:
    """Returns tokens without the characters of the document, which their places tell.

    The tokens of a chat have no places, and are not kept. A token that stands for no characters keeps its name.
    """
    if tokens is None or all(token.start is None for token in tokens):
        return None
    return [token if token.start is None else token.model_copy(update={"token": ""}) for token in tokens]


def _with_texts(row: ResultRow, document: Document, request: AttributeRequest) -> ResultRow:
    """Returns a result with those parts of its document that the request asked for."""
    update: dict[str, Any] = {"words": row.words}
    if row.group is not None and request.groups_by_column and request.group_by is not None:
        value = document["metadata"].get(request.group_by)
        update["group"] = row.group.model_copy(update={"value": value})
    if "text" in request.include:
        update |= {name: document[name] for name in ("prompt", "completion", "rejected")}
    if "metadata" in request.include:
        update["metadata"] = document["metadata"]
    if row.tokens is not None:
        update["tokens"] = [_with_token_text(token, document) for token in row.tokens]
    return without_row_texts(row).model_copy(update=update)


def _with_token_text(token: TokenInfluence, document: Document) -> TokenInfluence:
    """Returns a token with the characters of the document that it stands for; of a pair, in its own completion."""
    if token.start is None:
        return token
    completion = document["rejected"] if token.sequence == "rejected" else document["completion"]
    text = document["prompt"] + (completion or "")
    return token.model_copy(update={"token": text[token.start : token.end]})
