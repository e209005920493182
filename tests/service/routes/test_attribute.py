"""POST /attribute sends the query to a worker and returns the answer, or takes the answer from the cache."""

import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import (
    BergsonError,
    DeadlineExceeded,
    IndexBusy,
    IndexNotFound,
    NoWorker,
    QueueFull,
    RedisUnavailable,
    TooLong,
)
from bergson_core.storage.takedown_log import record_takedown
from service.indexes.answer_cache import AnswerCache
from service.openapi import examples
from service.schemas import AttributeResponse
from service.settings import ServiceSettings
from tests.service.fake_broker import FakeBroker, make_answer
from tests.service.helpers import make_key_header, require_problem, serve_app
from tests.worker.helpers import wait_until
from worker.messages import ServiceQuery

QUERY: dict[str, Any] = {"index": "facts", "prompt": "Ada was born in", "completion": " London"}


def test_the_answer_comes_with_the_id_of_its_request(client: TestClient) -> None:
    response = client.post("/attribute", json=QUERY, headers={"X-Request-ID": "mine"})
    answer = AttributeResponse.model_validate_json(response.text)
    assert (answer.request_id, answer.index, answer.query.completion) == ("mine", "facts", " London")
    assert [row.id for row in answer.results or []] == ["doc-0"]


def test_the_query_reaches_the_worker_unchanged(client: TestClient, broker: FakeBroker) -> None:
    body = QUERY | {"top_k": 3, "direction": "both", "include": ["text"], "timeout_s": 2.5}
    client.post("/attribute", json=body, headers={"X-Request-ID": "mine"})
    expected = ServiceQuery(**QUERY, top_k=3, direction="both", include=("text",))
    assert broker.queries == [(expected, "mine", 2.5)]


@pytest.mark.parametrize(
    "body",
    [
        examples.ATTRIBUTE_REQUEST,
        examples.ATTRIBUTE_BOTH,
        examples.ATTRIBUTE_RESCORED,
        examples.ATTRIBUTE_WORDS,
        examples.ATTRIBUTE_FUSED,
        examples.ATTRIBUTE_VERIFIED,
        examples.ATTRIBUTE_JOIN,
        examples.ATTRIBUTE_CHAT,
    ],
)
def test_the_documented_bodies_are_accepted(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/attribute", json=body).status_code == 200


def test_queries_that_differ_in_their_join_have_different_answers(
    client: TestClient, broker: FakeBroker
) -> None:
    for join in ("exact", "space", "exact"):
        assert client.post("/attribute", json=QUERY | {"join": join}).status_code == 200
    assert [query.join for query, *_ in broker.queries] == ["exact", "space"], "the third is from the cache"
    refused = client.post("/attribute", json=QUERY | {"join": "newline"})
    assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, ["body", "join"])


def test_the_answer_has_the_warnings_also_in_a_batch_and_from_the_cache(client: TestClient) -> None:
    query = QUERY | {"completion": "London"}
    warnings = [client.post("/attribute", json=query).json()["warnings"] for _ in range(2)]
    warnings.append(
        client.post("/attribute/batch", json={"queries": [query]}).json()["results"][0]["warnings"]
    )
    expected = {"code": "missing_space", "detail": "no space before it", "suggestion": " London"}
    assert warnings == [[expected]] * 3


@pytest.mark.parametrize("timeout", [{}, {"timeout_s": None}])
def test_a_query_without_a_timeout_gets_the_default(
    client: TestClient, broker: FakeBroker, timeout: dict[str, Any]
) -> None:
    client.post("/attribute", json=QUERY | timeout)
    assert broker.queries[0][2] == 30


@pytest.mark.parametrize("timeout_s", [0, -1, 300.5, "soon"])
def test_a_timeout_out_of_range_is_refused(client: TestClient, timeout_s: object) -> None:
    problem = require_problem(
        client.post("/attribute", json=QUERY | {"timeout_s": timeout_s}), 422, "invalid_input"
    )
    assert "timeout_s" in problem.detail


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"index": "../facts"}, "index"),
        ({"index": "Facts"}, "index"),
        ({"completion": ""}, "completion"),
        ({"prompt": "x", "top_k": 0}, "top_k"),
        ({"top_k": 1001}, "top_k"),
        ({"top_k": "10"}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"partial": 1}, "partial"),
        ({"direction": "sideways"}, "direction"),
        ({"max_new_tokens": 257}, "max_new_tokens"),
        ({"filter": {}}, "filter"),
        ({"rescore": 0}, "rescore"),
        ({"rescore": 1001}, "rescore"),
        ({"rescore": 20.5}, "rescore"),
        ({"rescore": 20, "profile": "medicine"}, "rescore"),
        ({"verify": {"top": 33}}, "verify"),
        ({"verify": {"learning_rate": 1e39}}, "verify"),
        ({"verify": {"controls": -1}}, "verify"),
        ({"verify": True}, "verify"),
        ({"profile": "No spaces"}, "profile"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_refused(
    client: TestClient, broker: FakeBroker, change: dict[str, Any], field: str
) -> None:
    problem = require_problem(client.post("/attribute", json=QUERY | change), 422, "invalid_input")
    assert [error.loc[:2] for error in problem.errors or []] == [["body", field]]
    assert not broker.queries


@pytest.mark.parametrize(
    ("change", "location", "message"),
    [
        ({"span": [3, 1]}, ["span"], "expected 0 ≤ start < end"),
        ({"span": [1]}, ["span", 1], "required, but missing"),
        ({"span": [1, 2, 3]}, ["span"], "expected at most 2 of them, got 3"),
        ({"span": 3}, ["span"], "expected a list"),
        ({"include": "text"}, ["include"], "expected a list"),
        ({"include": ["tokens"], "top_k": 33}, ["top_k"], "expected a top_k of at most 32"),
        ({"verify": []}, ["verify"], "expected an object"),
        ({"filter": 3}, ["filter"], "expected an object"),
        ({"filter": {}}, ["filter"], "expected at least 1 of them, got 0"),
        (
            {"filter": {"year": {"gte": True}}},
            ["filter", "year", "gte"],
            "expected a finite number or a text",
        ),
        ({"filter": {"year": {"not_in": 3}}}, ["filter", "year", "not_in"], "expected a list of values"),
        (
            {"filter": {"year": {"in": [3]}}},
            ["filter", "year", "in"],
            "expected gte, gt, lte, lt, ne, not_in, exists",
        ),
        ({"filter": {"year": {"eq": 3}}}, ["filter", "year", "eq"], "got the comparison 'eq'"),
        ({"filter": {"year": {}}}, ["filter", "year"], "expected at least one of gte"),
        ({"filter": {"year": [[3]]}}, ["filter", "year"], "expected a text, a finite number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_has_one_error_with_its_location_in_words_of_json(
    client: TestClient, change: dict[str, Any], location: list[str | int], message: str
) -> None:
    problem = require_problem(client.post("/attribute", json=QUERY | change), 422, "invalid_input")
    (error,) = problem.errors or []
    assert error.loc == ["body", *location]
    assert message in error.msg
    assert not re.search("(?i)tuple|dict|instance", error.msg)


def test_a_list_of_wrong_items_is_not_called_empty_as_well(client: TestClient) -> None:
    chat = {"index": "facts", "messages": [{"role": "assistant", "content": 3}]}
    problem = require_problem(client.post("/attribute", json=chat), 422, "invalid_input")
    assert [error.loc for error in problem.errors or []] == [["body", "messages", 0]]
    batch = {"queries": [{**QUERY, "top_k": 0}, {**QUERY, "direction": "x"}]}
    problem = require_problem(client.post("/attribute/batch", json=batch), 422, "invalid_input")
    assert [error.loc for error in problem.errors or []] == [
        ["body", "queries", 0, "top_k"],
        ["body", "queries", 1, "direction"],
    ]
    problem = require_problem(client.post("/attribute/batch", json={"queries": []}), 422, "invalid_input")
    assert [error.loc for error in problem.errors or []] == [["body", "queries"]]


CHAT = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In London.", "name": "bot"}]
"""A chat. Messages may have more fields than role and content."""


def test_a_query_may_be_a_chat(client: TestClient, broker: FakeBroker) -> None:
    body = {"index": "facts", "messages": CHAT, "span": [3, 9]}
    assert client.post("/attribute", json=body).status_code == 200
    assert client.post("/attribute", json=body).status_code == 200
    assert [query for query, *_ in broker.queries] == [
        ServiceQuery(index="facts", messages=CHAT, span=(3, 9))
    ]
    client.post("/attribute/batch", json={"queries": [body, body | {"messages": CHAT * 2}]})
    assert [query.messages for query, *_ in broker.queries[1:]] == [(*CHAT, *CHAT)]


@pytest.mark.parametrize(
    ("body", "location"),
    [
        ({}, ["prompt"]),
        ({"prompt": None}, ["prompt"]),
        ({"completion": " x"}, ["prompt"]),
        ({"messages": CHAT, "prompt": "x"}, ["prompt"]),
        ({"messages": CHAT, "prompt": ""}, ["prompt"]),
        ({"messages": CHAT, "completion": "x"}, ["completion"]),
        ({"messages": CHAT[:1]}, ["messages", 0, "role"]),
        ({"messages": [*CHAT, *CHAT[:1]]}, ["messages", 2, "role"]),
        ({"messages": []}, ["messages"]),
        ({"messages": "Hi"}, ["messages"]),
        ({"messages": ["Hi"]}, ["messages", 0]),
        ({"messages": [CHAT[0], {"content": "Hi"}]}, ["messages", 1]),
        ({"messages": [CHAT[0], {"role": 3, "content": "Hi"}]}, ["messages", 1]),
        ({"messages": [CHAT[0], {"role": "assistant", "content": 3}]}, ["messages", 1]),
        ({"messages": [{"role": "assistant"}], "span": [0, 1]}, ["span"]),
        ({"messages": CHAT, "span": [0, 11]}, ["span"]),
    ],
    ids=lambda value: str(value)[:80],
)
def test_a_query_that_is_neither_a_prompt_nor_a_chat_is_refused(
    client: TestClient, broker: FakeBroker, body: dict[str, Any], location: list[str | int]
) -> None:
    problem = require_problem(client.post("/attribute", json={"index": "facts"} | body), 422, "invalid_input")
    assert next(error.loc for error in problem.errors or []) == ["body", *location]
    assert not broker.queries
    batch = {"queries": [QUERY, {"index": "facts"} | body]}
    problem = require_problem(client.post("/attribute/batch", json=batch), 422, "invalid_input")
    assert next(error.loc for error in problem.errors or []) == ["body", "queries", 1, *location]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (IndexNotFound, 404),
        (IndexBusy, 409),
        (TooLong, 422),
        (QueueFull, 429),
        (NoWorker, 503),
        (RedisUnavailable, 503),
        (DeadlineExceeded, 504),
    ],
)
def test_each_error_of_a_query_has_its_status(
    client: TestClient, broker: FakeBroker, error: type[BergsonError], status: int
) -> None:
    broker.error = error("why")
    require_problem(client.post("/attribute", json=QUERY), status, error.code)


def test_a_span_beyond_the_completion_is_refused(client: TestClient) -> None:
    problem = require_problem(client.post("/attribute", json=QUERY | {"span": [0, 8]}), 422, "invalid_input")
    assert "the characters of the completion; got [0, 8]" in problem.detail


def test_the_model_may_generate_the_completion(client: TestClient, broker: FakeBroker) -> None:
    body = {"index": "facts", "prompt": "Ada was born in", "max_new_tokens": 4}
    assert client.post("/attribute", json=body).json()["query"]["completion"] == " said"
    assert broker.queries[0][0].completion is None


def test_the_query_of_a_client_that_disconnects_is_withdrawn(app: FastAPI, broker: FakeBroker) -> None:
    with serve_app(app) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/attribute", json=QUERY | {"prompt": "wait"}, timeout=0.5)
        wait_until(lambda: broker.withdrawn_prompts == ["wait"])


def test_the_batch_of_a_client_that_disconnects_is_withdrawn(app: FastAPI, broker: FakeBroker) -> None:
    body = {"queries": [QUERY | {"prompt": f"wait {number}"} for number in range(3)]}
    with serve_app(app) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/attribute/batch", json=body, timeout=0.5)
        wait_until(lambda: sorted(broker.withdrawn_prompts) == ["wait 0", "wait 1", "wait 2"])


# The cache


def test_a_repeated_query_is_answered_from_the_cache(client: TestClient, broker: FakeBroker) -> None:
    first, second = (client.post("/attribute", json=QUERY).json() for _ in range(2))
    assert len(broker.queries) == 1
    assert first["results"] == second["results"]
    assert first["request_id"] != second["request_id"]
    assert (second["timing_ms"]["gradient"], second["timing_ms"]["search"]) == (0, 0)


def test_a_query_with_no_cache_is_sent_to_a_worker_again(client: TestClient, broker: FakeBroker) -> None:
    for headers in ({}, {"Cache-Control": "no-cache"}, {"Cache-Control": "max-age=60"}):
        client.post("/attribute", json=QUERY, headers=headers)
    assert len(broker.queries) == 2


@pytest.mark.parametrize("change", [{"top_k": 9}, {"prompt": "Bo was born in"}, {"include": ["text"]}])
def test_a_different_query_is_sent_to_a_worker(
    client: TestClient, broker: FakeBroker, change: dict[str, Any]
) -> None:
    for body in (QUERY, QUERY | change):
        client.post("/attribute", json=body)
    assert len(broker.queries) == 2


def test_a_new_version_of_the_index_makes_cached_answers_obsolete(
    client: TestClient, broker: FakeBroker, settings: ServiceSettings
) -> None:
    client.post("/attribute", json=QUERY)
    manifest = settings.indexes_dir / "facts" / "manifest.json"
    (manifest.parent / "next").write_bytes(manifest.read_bytes())
    (manifest.parent / "next").rename(manifest)
    client.post("/attribute", json=QUERY)
    assert len(broker.queries) == 2


def test_a_takedown_makes_cached_answers_obsolete(
    client: TestClient, broker: FakeBroker, settings: ServiceSettings
) -> None:
    client.post("/attribute", json=QUERY)
    record_takedown(settings.indexes_dir / "facts", "doc-0", lambda: 1)
    client.post("/attribute", json=QUERY)
    assert len(broker.queries) == 2


def test_a_verified_answer_has_the_effects_of_unlearning_and_is_cached_apart_from_a_plain_one(
    client: TestClient, broker: FakeBroker
) -> None:
    plain, verified, again = (
        client.post("/attribute", json=QUERY | {"verify": verify}).json()
        for verify in (None, {"top": 1, "controls": 1}, {"top": 1, "controls": 1})
    )
    assert len(broker.queries) == 2
    effect = {"log_probability": -2.0, "probability": -0.7, "own_log_probability": -4.0}
    for answer in (verified, again):
        assert answer["results"][0]["verified"] == effect
        assert answer["verification"]["controls"] == [{"id": "doc-9", **effect}]
        assert answer["verification"]["mean"] == effect
    assert (plain["verification"], plain["results"][0]["verified"]) == (None, None)


def test_the_results_together_are_shown_beside_the_sum_of_their_single_steps(
    client: TestClient,
) -> None:
    body = QUERY | {"verify": {"top": 1, "controls": 1, "together": True}}
    verification = client.post("/attribute", json=body).json()["verification"]
    effect = {"log_probability": -2.0, "probability": -0.7, "own_log_probability": -4.0}
    assert verification["together"] == {
        "ids": ["doc-0"],
        **effect,
        "sum": effect,
        "controls": [{"ids": ["doc-8"], **effect}],
        "mean": effect,
    }
    assert verification["opponents_together"] is None


def test_a_group_is_shown_with_its_members_and_their_sum(client: TestClient) -> None:
    (row,) = client.post("/attribute", json=QUERY | {"group_by": "source"}).json()["results"]
    group = row["group"]
    assert (group["value"], group["count"]) == ("wiki", len(group["members"]))
    assert group["score"] == sum(member["score"] for member in group["members"])
    for refused in ({"rescore": 3}, {"order": "words"}, {"include": ["tokens"]}):
        body = QUERY | {"group_by": "source"} | refused
        problem = require_problem(client.post("/attribute", json=body), 422, "invalid_input")
        assert [error.loc for error in problem.errors or ()] == [["body", *refused]]


def test_results_say_whether_their_scores_are_exact_and_an_answer_that_is_cut_short_is_not_cached(
    client: TestClient, broker: FakeBroker
) -> None:
    for rescore, exact in ((2, 2), (501, 500)):
        for _ in range(2):
            answer = client.post("/attribute", json=QUERY | {"rescore": rescore}).json()
            assert answer["rescored"] == {"candidates": rescore, "exact": exact}
            assert [row["exact"] for row in answer["results"]] == [True]
    assert [query.rescore for query, *_ in broker.queries] == [2, 501, 501]
    plain = client.post("/attribute", json=QUERY).json()
    assert (plain["rescored"], plain["results"][0]["exact"]) == (None, False)


def test_each_32_candidates_to_rescore_count_as_a_call(client: TestClient, settings: ServiceSettings) -> None:
    header = make_key_header(settings.data_dir, rate="9/minute")
    body = QUERY | {"rescore": 300}
    problem = require_problem(client.post("/attribute", json=body, headers=header), 422, "invalid_input")
    assert "got 11 queries" in problem.detail
    assert client.post("/attribute", json=QUERY | {"rescore": 96}, headers=header).status_code == 200
    batch = {"queries": [QUERY | {"rescore": 64, "direction": "both"}]}
    response = client.post("/attribute/batch", json=batch, headers=header)
    require_problem(response, 429, "rate_limited")


def test_each_document_to_verify_counts_as_a_call(
    client: TestClient, broker: FakeBroker, settings: ServiceSettings
) -> None:
    header = make_key_header(settings.data_dir, rate="8/minute")
    body = QUERY | {"verify": {"top": 3, "controls": 3}}
    assert client.post("/attribute", json=body, headers=header).status_code == 200
    require_problem(client.post("/attribute", json=body, headers=header), 429, "rate_limited")
    both = QUERY | {"direction": "both", "verify": {"top": 3, "controls": 2}}
    other = make_key_header(settings.data_dir, name="bob", rate="8/minute")
    problem = require_problem(client.post("/attribute", json=both, headers=other), 422, "invalid_input")
    assert "got 9 queries" in problem.detail
    batch = client.post("/attribute/batch", json={"queries": [body]}, headers=other)
    assert batch.json()["results"][0]["verification"]
    require_problem(
        client.post("/attribute/batch", json={"queries": [body]}, headers=other), 429, "rate_limited"
    )


def test_errors_are_not_cached(client: TestClient, broker: FakeBroker) -> None:
    broker.error = QueueFull("why")
    require_problem(client.post("/attribute", json=QUERY), 429, "queue_full")
    broker.error = None
    assert client.post("/attribute", json=QUERY).status_code == 200


def test_the_cache_drops_the_least_recently_used_answers_and_takes_no_partial_ones() -> None:
    answer = make_answer(ServiceQuery(**QUERY), ["text"])
    cache = AnswerCache(2 * len(answer.model_dump_json()) + 1000)
    for key in ("a", "b", "c"):
        cache.put((key,), answer)
        cache.get(("a",))
    assert [cache.get((key,)) for key in ("a", "b", "c")] == [answer, None, answer]
    cache.put(("d",), answer.model_copy(update={"partial": True}))
    AnswerCache(0).put(("e",), answer)
    assert cache.get(("d",)) is None


# Batches


def test_a_batch_is_answered_in_order_and_each_query_has_its_own_problem(
    client: TestClient, broker: FakeBroker
) -> None:
    prompts = ["one", "bad", "three"]
    queries = [QUERY | {"prompt": prompt} for prompt in prompts] + [QUERY | {"index": "secret-1"}]
    response = client.post("/attribute/batch", json={"queries": queries}, headers={"X-Request-ID": "mine"})
    first, second, third, _ = response.json()["results"]
    assert [answer["query"]["prompt"] for answer in (first, third)] == ["one", "three"]
    assert (second["code"], second["status"]) == ("too_long", 422)
    assert {result["request_id"] for result in (first, second, third)} == {"mine"}
    assert {priority for _, priority in broker.lanes_and_priorities} == {"batch"}


@pytest.mark.parametrize("count", [0, 257])
def test_an_empty_or_too_large_batch_is_refused(client: TestClient, count: int) -> None:
    response = client.post("/attribute/batch", json={"queries": [QUERY] * count})
    assert "queries" in require_problem(response, 422, "invalid_input").detail


def test_each_query_of_a_batch_counts_as_a_call(
    client: TestClient, broker: FakeBroker, settings: ServiceSettings
) -> None:
    header = make_key_header(settings.data_dir, rate="5/minute")
    body = {"queries": [QUERY | {"prompt": f"prompt {number}"} for number in range(4)]}
    assert client.post("/attribute/batch", json=body, headers=header).status_code == 200
    require_problem(client.post("/attribute/batch", json=body, headers=header), 429, "rate_limited")
    too_many, other = (
        {"queries": [QUERY] * 6},
        make_key_header(settings.data_dir, name="bob", rate="5/minute"),
    )
    problem = require_problem(
        client.post("/attribute/batch", json=too_many, headers=other), 422, "invalid_input"
    )
    assert "is 5/minute, got 6 queries" in problem.detail
    assert len(broker.queries) == 4
    assert {lane for lane, _ in broker.lanes_and_priorities} != {""}
