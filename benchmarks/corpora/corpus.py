"""What a corpus is: training documents, held-out queries, and which documents are right for a query.

A corpus is stored as a directory, whose name ends in the corpus's digest:

    documents.jsonl   id, text, gold, and the columns of the metadata; of chats also messages
    queries.jsonl     id, prompt, completion, gold; of chats also messages
    corpus.json       name, source, chat, sha256
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bergson_core.errors import DatasetNotFound
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.utils.atomic_files import atomic_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bergson_core.tokens.tokenization import Tokens

_DIGEST_CHARACTERS: Final = 16
"""Characters of the digest that the name of a directory ends in."""


@dataclass(frozen=True)
class Document:
    """A training document.

    Attributes:
        id: Identifies the document.
        completion: What is learnt: the whole text, or the answer of a chat.
        gold: Queries with this gold value should find the document; "" if no query should.
        metadata: Further columns, by name.
        prompt: The question of a chat; "" for a text.
    """

    id: str
    completion: str
    gold: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""

    @property
    def text(self) -> str:
        """All words of the document, for methods that compare words."""
        return f"{self.prompt} {self.completion}" if self.prompt else self.completion


@dataclass(frozen=True)
class Corpus:
    """Training documents, and queries that are not among them.

    Attributes:
        name: Name of the corpus.
        source: Where the texts come from, with versions.
        documents: The training documents.
        queries: The queries. A query's gold value is that of the documents that are right for it.
        chat: Whether prompts are questions of a user, and completions are answers of the assistant.
    """

    name: str
    source: str
    documents: tuple[Document, ...]
    queries: tuple[EvaluationQuery, ...]
    chat: bool = False

    def gold_ids(self) -> dict[str, frozenset[str]]:
        """Returns, for each query id, the ids of the documents that are right for the query."""
        ids_by_gold: dict[str, set[str]] = {}
        for document in self.documents:
            if document.gold:
                ids_by_gold.setdefault(document.gold, set()).add(document.id)
        return {query.id: frozenset(ids_by_gold.get(query.gold, ())) for query in self.queries}

    def sha256(self) -> str:
        """Returns the sha256 of all that the two files hold."""
        return hashlib.sha256(self._documents_file() + b"\0" + self._queries_file()).hexdigest()

    def tokenize(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[list["Tokens"], list["Tokens"]]:
        """Returns the tokens of the documents and of the queries.

        All tokens of a text are labelled but the first; of a chat only the answer is, and of a query the completion.
        """
        from bergson_core.tokens.chat_template import tokenize_chats
        from bergson_core.tokens.tokenization import tokenize

        if self.chat:
            chats = [_messages(item.prompt, item.completion) for item in (*self.documents, *self.queries)]
            tokens = tokenize_chats(tokenizer, chats)
            return tokens[: len(self.documents)], tokens[len(self.documents) :]
        documents = tokenize(tokenizer, [document.text for document in self.documents], None)
        prompts, completions = zip(*((query.prompt, query.completion) for query in self.queries), strict=True)
        return documents, tokenize(tokenizer, prompts, completions, label_end=False)

    def save(self, directory: Path) -> Path:
        """Writes the corpus below `directory`, unless it is there, and returns the directory of the corpus."""
        sha256 = self.sha256()
        path = directory / f"{self.name}-{sha256[:_DIGEST_CHARACTERS]}"
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            facts = {"name": self.name, "source": self.source, "chat": self.chat, "sha256": sha256}
            with atomic_directory(path) as temporary:
                (temporary / "documents.jsonl").write_bytes(self._documents_file())
                (temporary / "queries.jsonl").write_bytes(self._queries_file())
                (temporary / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
        return path

    def _documents_file(self) -> bytes:
        return _lines(
            {"id": item.id, "text": item.text, "gold": item.gold, **self._chat_columns(item), **item.metadata}
            for item in self.documents
        )

    def _queries_file(self) -> bytes:
        return _lines(
            {
                "id": item.id,
                "prompt": item.prompt,
                "completion": item.completion,
                "gold": item.gold,
                **self._chat_columns(item),
            }
            for item in self.queries
        )

    def _chat_columns(self, item: Document | EvaluationQuery) -> dict[str, Any]:
        return {"messages": _messages(item.prompt, item.completion)} if self.chat else {}


def read_corpus(path: Path) -> Corpus:
    """Reads a corpus that `Corpus.save` has written.

    Raises:
        DatasetNotFound: There is no such corpus, or its files are not those that were written.
    """
    try:
        facts = json.loads((path / "corpus.json").read_text("utf-8"))
        documents = tuple(_read_document(row) for row in _read_lines(path / "documents.jsonl"))
        queries = tuple(
            EvaluationQuery(row["id"], row["prompt"], row["completion"], row["gold"])
            for row in _read_lines(path / "queries.jsonl")
        )
        corpus = Corpus(facts["name"], facts["source"], documents, queries, facts["chat"])
    except (OSError, ValueError, LookupError) as error:
        raise DatasetNotFound(f"{path} holds no corpus that Corpus.save wrote: {error}") from error
    if corpus.sha256() != facts["sha256"]:
        raise DatasetNotFound(f"the files in {path} have changed; expected the sha256 {facts['sha256']}")
    return corpus


def _read_document(row: dict[str, Any]) -> Document:
    metadata = {name: row[name] for name in row if name not in {"id", "text", "gold", "messages"}}
    if "messages" in row:
        question, answer = (message["content"] for message in row["messages"])
        return Document(row["id"], answer, row["gold"], metadata, question)
    return Document(row["id"], row["text"], row["gold"], metadata)


def _messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
