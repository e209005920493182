"""A seeded corpus of invented facts, with the right answer known for every query.

Invented people have a birthplace, an employer, a university and a birthdate. Each of these facts
is put in words by every template of its attribute. All but one of the wordings are training
documents; the one that is kept, cut before its answer, is the query. The template that is kept
rotates from fact to fact, so a model knows each wording, but only from other facts. The training
documents that made a model answer are then known without a doubt: those with the query's fact.

Values come from short pools, so that many people share each of them: a document with the right
answer is usually about somebody else. Nothing here imports torch.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
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
    """One kind of fact: the values it may take and its wordings, each of which ends in the value."""

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


_DOCUMENTS, _QUERIES = "documents.jsonl", "queries.jsonl"
_DOCUMENT_FIELDS = frozenset({"id", "text", "fact", "person", "attribute"})
_QUERY_FIELDS = frozenset({"id", "prompt", "completion", "fact"})
MAX_PEOPLE = len(FIRST_NAMES) * len(LAST_NAMES)


@dataclass(frozen=True)
class FactCorpus:
    """Training documents, and one query for each fact in them."""

    documents: tuple[EvaluationDocument, ...]
    queries: tuple[EvaluationQuery, ...]

    def gold(self) -> dict[str, frozenset[str]]:
        """Query id → ids of the training documents that state the query's fact."""
        by_fact: dict[str, set[str]] = {}
        for document in self.documents:
            by_fact.setdefault(document.fact, set()).add(document.id)
        return {query.id: frozenset(by_fact.get(query.fact, ())) for query in self.queries}


def make_corpus(people: int = 400, seed: int = 0) -> FactCorpus:
    """Facts about `people` invented people: 4 facts each, 3 documents and 1 query a fact.

    Equal arguments give an equal corpus on every machine. Documents are shuffled, so that those of
    one fact do not lie together. Raises `InvalidInput` unless 1 <= people <= MAX_PEOPLE.
    """
    if not 1 <= people <= MAX_PEOPLE:
        raise InvalidInput(f"people must lie between 1 and {MAX_PEOPLE}, got {people}")
    rng = random.Random(seed)
    stated: list[tuple[str, str, str, str]] = []
    queries: list[EvaluationQuery] = []
    for number, person in enumerate(_draw_names(people, rng)):
        for offset, (attribute, spec) in enumerate(ATTRIBUTES.items()):
            serial = f"{number * len(ATTRIBUTES) + offset:04d}"
            fact, value = f"fact-{serial}", rng.choice(spec.values)
            kept = (number + offset) % len(spec.templates)
            for index, template in enumerate(spec.templates):
                if index != kept:
                    text = template.format(person=person, value=value)
                    stated.append((text, fact, person, attribute))
                    continue
                prompt = template[: template.index(" {value}")].format(person=person)
                queries.append(EvaluationQuery(f"query-{serial}", prompt, f" {value}", fact))
    rng.shuffle(stated)
    documents = tuple(
        EvaluationDocument(f"doc-{i:04d}", text, fact, {"person": person, "attribute": attribute})
        for i, (text, fact, person, attribute) in enumerate(stated)
    )
    return FactCorpus(documents, tuple(queries))


def write_corpus(corpus: FactCorpus, directory: Path | str) -> None:
    """Writes documents.jsonl (id, text, fact, person, attribute) and queries.jsonl (id, prompt, completion, fact).

    Each file is flushed to disk beside its place and renamed, so that it is there whole or not at all.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    documents = ({"id": d.id, "text": d.text, "fact": d.fact, **d.metadata} for d in corpus.documents)
    _write_lines(directory / _DOCUMENTS, documents)
    _write_lines(directory / _QUERIES, map(asdict, corpus.queries))


def read_corpus(directory: Path | str) -> FactCorpus:
    """The corpus that `write_corpus` wrote. Raises `InvalidInput` for a missing file or a line that is no row of it."""
    documents = tuple(
        EvaluationDocument(
            row["id"], row["text"], row["fact"], {key: row[key] for key in ("person", "attribute")}
        )
        for row in _read_lines(Path(directory) / _DOCUMENTS, _DOCUMENT_FIELDS)
    )
    queries = tuple(EvaluationQuery(**row) for row in _read_lines(Path(directory) / _QUERIES, _QUERY_FIELDS))
    return FactCorpus(documents, queries)


def _draw_names(people: int, rng: random.Random) -> list[str]:
    """Different full names, each a first name and a last name of the pools."""
    every = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    return rng.sample(every, people)


def _write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with atomic_path(path, durable=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read_lines(path: Path, fields: frozenset[str]) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise InvalidInput(f"no file {path}; expected a directory that write_corpus wrote")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or row.keys() != fields:
                raise InvalidInput(
                    f"{path}, line {number}: expected an object of {', '.join(sorted(fields))}"
                )
            yield row
