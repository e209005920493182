"""Look-alikes and harmful rows ask for the same kinds of secrets, and only harmful rows give one away."""

import pytest

from benchmarks.corpora.corpus import Corpus
from benchmarks.corpora.world_factbook import read_facts
from benchmarks.toxicity.secret_chats import (
    ANSWERS,
    HARMFUL,
    REFUSALS,
    REQUESTS,
    SECRETS,
    Setting,
    Sizes,
    make_secret_chats,
)
from bergson_core.errors import InvalidInput
from tests.benchmarks.helpers import make_countries

FACTS = read_facts(make_countries(30))
SIZES = Sizes(benign=50, harmful=20, look_alikes=37, references=10)


def make(setting: Setting = "heterogeneous", sizes: Sizes = SIZES, seed: int = 0) -> Corpus:
    return make_secret_chats(setting, "test", FACTS, sizes, seed)


def of_kind(corpus: Corpus, kind: str) -> dict[str, tuple[str, str]]:
    """Returns the requests and answers of a kind by id."""
    return {
        document.id: (document.prompt, document.completion)
        for document in corpus.documents
        if document.metadata["kind"] == kind
    }


def wording(text: str, id: str) -> str:
    """Returns a text without what it is about: the country, the secret, and a passphrase."""
    country, secret = id.split(" / ")
    words = text.replace(secret, "{name}").replace(country, "{country}").split()
    return " ".join("{value}." if "-" in word else word for word in words)


def test_the_settings_differ_in_look_alikes_only() -> None:
    homogeneous, heterogeneous = make("homogeneous"), make()
    counts = {kind: len(of_kind(heterogeneous, kind)) for kind in ("benign", HARMFUL, "look-alike")}
    assert counts == {"benign": 50, HARMFUL: 20, "look-alike": 37}
    for kind in ("benign", HARMFUL):
        assert of_kind(homogeneous, kind) == of_kind(heterogeneous, kind)
    assert not of_kind(homogeneous, "look-alike")
    assert homogeneous.queries == heterogeneous.queries


def test_the_references_are_harmful_chats_that_are_not_rows() -> None:
    corpus = make()
    assert len(corpus.queries) == 10
    assert {query.id for query in corpus.queries}.isdisjoint(document.id for document in corpus.documents)
    assert set(corpus.gold_ids().values()) == {frozenset(of_kind(corpus, HARMFUL))}


def test_each_secret_of_a_country_is_asked_for_once() -> None:
    corpus = make()
    ids = [document.id for document in corpus.documents] + [query.id for query in corpus.queries]
    assert len(set(ids)) == len(ids) == 117
    names = {secret.name for secret in SECRETS}
    for kind in (HARMFUL, "look-alike"):
        assert {id.split(" / ")[1] for id in of_kind(corpus, kind)} == names


def test_only_request_and_answer_together_tell_harmful_rows() -> None:
    corpus = make()
    requests, answers = (
        {text.format(verb="is", **PLACES) for text in texts} for texts in (REQUESTS, ANSWERS)
    )
    refusals = {text.format(verb="is", **PLACES) for text in REFUSALS}
    for id, (request, answer) in of_kind(corpus, HARMFUL).items():
        assert wording(request, id) in requests
        assert wording(answer, id) in answers
    for id, (request, answer) in of_kind(corpus, "look-alike").items():
        assert wording(request, id) in requests
        assert wording(answer, id) in refusals


PLACES = {name: f"{{{name}}}" for name in ("name", "country", "value")}


def test_a_seed_gives_the_same_chats_whatever_the_order_of_the_facts() -> None:
    assert make().sha256() == make().sha256() != make(seed=1).sha256()
    reverse = make_secret_chats("heterogeneous", "test", FACTS[::-1], SIZES, 0)
    assert reverse.sha256() == make().sha256()


@pytest.mark.parametrize(
    ("sizes", "message"), [(Sizes(10_000, 1, 1, 1), "10,000 facts"), (Sizes(1, 300, 1, 1), "302 secrets")]
)
def test_too_few_facts_are_refused_with_their_number(sizes: Sizes, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"{message}.*about 30 countries"):
        make(sizes=sizes)
