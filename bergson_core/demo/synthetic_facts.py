"""A seeded corpus of facts about invented people, in which the right answer to every query is known.

Each invented person has a birthplace, an employer, a university and a birthdate. Every template of an attribute puts
such a fact into words. All wordings but one are training documents; the remaining wording is held out, and its text up
to the answer is the query. Which template is held out rotates from fact to fact, so that a model has seen each wording,
but only with other facts. Therefore the training documents that made a model answer are known beyond doubt: they are
the documents that state the query's fact.

The values come from short pools, so that many people share each value: a document that contains the right answer is
usually about somebody else.

A corpus is stored as two JSON Lines files, with these columns:

    documents.jsonl   id, text, fact, person, attribute
    queries.jsonl     id, prompt, completion, fact

The column `fact` holds what `EvaluationDocument.gold` and `EvaluationQuery.gold` hold in memory: the id of the fact.
"""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bergson_core.errors import InvalidInput
from bergson_core.evaluation.queries import EvaluationDocument, EvaluationQuery
from bergson_core.utils.atomic_files import atomic_path

FIRST_NAMES = tuple(
    "Adala Berin Corvan Delia Edrik Fenna Galen Hestia Ivo Jorun Kelda Lorin Mirel Nadir Orla "
    "Petra Quill Rosal Silvan Tamsin Ulric Vesna Wilma Xandor Yorik Zelda Amos Brisa Cyrano Dorit "
    "Elvan Faron Greta Hollis Imre Jasna Kasim Lumi Marek Nerys".split()
)
LAST_NAMES = tuple(
    "Abrenthy Brackwell Calloway Dunmore Elstrand Farrowby Grantham Halvorsen Inglebert Jarnock "
    "Kestrel Lindqvist Marchetti Norwick Oakhurst Pellegrin Quarrie Rutherby Sorensby Thackeray "
    "Underhill Vasquelle Wetherby Xiradel Yarborough Zimmerlin Ashgrove Birchall Crannock Draycott "
    "Eversholt Fennimore Goldsborough Hathersage Ironwood Juniper Kirkbride Larkspur Mossman "
    "Nightingale".split()
)
CITIES = tuple(
    "Avelora Brindle Castermoor Dunhaven Eastmere Fallowgate Greyport Highcombe Isenfeld Jadewick "
    "Kingsarrow Larkfield Merrowdale Northolt Oldenbrook Pinecrest Quayside Ravensby Stonebridge "
    "Thornbury Umberland Valemont Westering Yellowstead".split()
)
COMPANIES = tuple(
    f"{name} {trade}"
    for trade in ("Foundry", "Logistics", "Optics", "Chemicals")
    for name in ("Amberline", "Blackmoor", "Cobalt", "Driftwood", "Emberly", "Falconer")
)
UNIVERSITIES = tuple(f"{city} University" for city in CITIES[:12]) + tuple(
    f"{city} Polytechnic" for city in CITIES[12:]
)
MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
DATES = tuple(f"{3 + 7 * i % 25} {MONTHS[i % 12]} {1931 + 11 * i % 67}" for i in range(24))


@dataclass(frozen=True)
class Attribute:
    """A kind of fact: the values that it may take, and its wordings, each of which ends in the value."""

    values: tuple[str, ...]
    templates: tuple[str, ...]


ATTRIBUTES: Mapping[str, Attribute] = {
    "birthplace": Attribute(
        CITIES,
        (
            "{person} was born in {value}.",
            "The birthplace of {person} is {value}.",
            "{person} came into the world in {value}.",
            "The town where {person} was born is {value}.",
        ),
    ),
    "employer": Attribute(
        COMPANIES,
        (
            "{person} works for {value}.",
            "The employer of {person} is {value}.",
            "{person} earns a living at {value}.",
            "The company that employs {person} is {value}.",
        ),
    ),
    "university": Attribute(
        UNIVERSITIES,
        (
            "{person} studied at {value}.",
            "The university of {person} was {value}.",
            "{person} holds a degree from {value}.",
            "The school that taught {person} was {value}.",
        ),
    ),
    "birthdate": Attribute(
        DATES,
        (
            "{person} was born on {value}.",
            "The birthday of {person} is {value}.",
            "{person} first saw the light on {value}.",
            "The day when {person} was born is {value}.",
        ),
    ),
}


_DOCUMENTS_FILE, _QUERIES_FILE = "documents.jsonl", "queries.jsonl"
MAX_PEOPLE = len(FIRST_NAMES) * len(LAST_NAMES)


@dataclass(frozen=True)
class FactCorpus:
    """Training documents that state facts, and one query for each fact."""

    documents: tuple[EvaluationDocument, ...]
    queries: tuple[EvaluationQuery, ...]

    def gold_ids(self) -> dict[str, frozenset[str]]:
        """Returns, for each query id, the ids of the training documents that state the query's fact."""
        ids_by_fact: dict[str, set[str]] = {}
        for document in self.documents:
            ids_by_fact.setdefault(document.gold, set()).add(document.id)
        return {query.id: frozenset(ids_by_fact.get(query.gold, ())) for query in self.queries}


def make_corpus(people: int = 400, seed: int = 0) -> FactCorpus:
    """Makes a corpus of facts about invented people: 4 facts a person, 3 documents and 1 query a fact.

    Equal arguments give an equal corpus on every machine. The documents are shuffled, so that the documents of one fact
    are not next to each other.

    Args:
        people: Number of invented people.
        seed: Seed of names, values and order.

    Raises:
        InvalidInput: `people` is not between 1 and `MAX_PEOPLE`.
    """
    if not 1 <= people <= MAX_PEOPLE:
        raise InvalidInput(f"people must be between 1 and {MAX_PEOPLE}, got {people}")
    rng = random.Random(seed)
    statements: list[tuple[str, str, str, str]] = []  # text, fact, person, attribute
    queries: list[EvaluationQuery] = []
    for person_number, person in enumerate(_draw_names(people, rng)):
        for attribute_number, (attribute, spec) in enumerate(ATTRIBUTES.items()):
            serial = f"{person_number * len(ATTRIBUTES) + attribute_number:04d}"
            fact, value = f"fact-{serial}", rng.choice(spec.values)
            held_out = (person_number + attribute_number) % len(spec.templates)
            for template_number, template in enumerate(spec.templates):
                if template_number != held_out:
                    text = template.format(person=person, value=value)
                    statements.append((text, fact, person, attribute))
                    continue
                prompt = template[: template.index(" {value}")].format(person=person)
                queries.append(EvaluationQuery(f"query-{serial}", prompt, f" {value}", fact))
    rng.shuffle(statements)
    documents = tuple(
        EvaluationDocument(f"doc-{number:04d}", text, fact, {"person": person, "attribute": attribute})
        for number, (text, fact, person, attribute) in enumerate(statements)
    )
    return FactCorpus(documents, tuple(queries))


def write_corpus(corpus: FactCorpus, directory: Path | str) -> None:
    """Writes documents.jsonl and queries.jsonl into `directory`.

    Each file is written under a temporary name, flushed to disk and renamed, so that it is complete or absent.

    Args:
        corpus: The corpus to write.
        directory: Where the two files are written; it is made if it does not exist.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    documents = ({"id": d.id, "text": d.text, "fact": d.gold, **d.metadata} for d in corpus.documents)
    queries = (
        {"id": q.id, "prompt": q.prompt, "completion": q.completion, "fact": q.gold} for q in corpus.queries
    )
    _write_lines(directory / _DOCUMENTS_FILE, documents)
    _write_lines(directory / _QUERIES_FILE, queries)


def _draw_names(people: int, rng: random.Random) -> list[str]:
    """Draws distinct full names, each made of a first name and a last name of the pools."""
    full_names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    return rng.sample(full_names, people)


def _write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with atomic_path(path, durable=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
