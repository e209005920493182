"""JSON Lines files of documents, put together from the sentences of the demo's corpus."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from bergson_core.demo.synthetic_facts import make_corpus


def corpus_sentences() -> list[str]:
    """Returns the 4,800 documents of the demo's corpus, each of which is one sentence."""
    return [document.text for document in make_corpus(people=400, seed=0).documents]


def write_sentence_pairs(directory: Path, count: int, id_prefix: str = "doc") -> Path:
    """Writes `count` documents of two sentences, with the ids doc-0, doc-1, …, and returns the file."""
    texts = corpus_sentences()
    directory.mkdir(exist_ok=True)
    return _write_lines(
        directory / f"documents-{count}.jsonl",
        (
            {
                "id": f"{id_prefix}-{k}",
                "text": f"{texts[k % len(texts)]} {texts[(k // len(texts) + 7 * k) % len(texts)]}",
            }
            for k in range(count)
        ),
    )


def write_sentence_groups(path: Path, count: int, sentences: int) -> Path:
    """Writes `count` documents, each of `sentences` successive sentences, and returns the file."""
    texts = corpus_sentences()
    return _write_lines(
        path,
        (
            {"text": " ".join(texts[(sentences * k + j) % len(texts)] for j in range(sentences))}
            for k in range(count)
        ),
    )


def write_documents_of_mixed_length(path: Path, count: int) -> Path:
    """Writes `count` documents of one to a hundred random sentences, most of them short, and returns the file."""
    texts, rng = corpus_sentences(), random.Random(0)
    return _write_lines(
        path,
        (
            {"text": " ".join(rng.choices(texts, k=min(100, 1 + int(rng.lognormvariate(0.5, 1)))))}
            for _ in range(count)
        ),
    )


def _write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path
