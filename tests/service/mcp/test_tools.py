"""The tools ask the service and mark what strangers have written."""

import json
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult, TextContent

from bergson_core.errors import NoWorker
from bergson_core.schemas.totals.spec import THRESHOLD_OF_SUMS
from service.client import Client as ServiceClient
from service.mcp.results import UNTRUSTED
from service.mcp.server import make_server
from service.mcp.service_access import ServiceAccess
from service.openapi import totals_examples
from tests.service.fake_broker import FakeBroker
from tests.service.mcp.conftest import TEXTS

QUESTION: dict[str, Any] = {"index": "news", "prompt": "Ada was born in", "completion": " London"}
READ_ONLY = {
    "list_indexes",
    "describe_index",
    "list_behaviours",
    "ask",
    "sum_influence",
    "look_at_document",
    "open_link",
    "preview_unlearning",
}


async def call(url: str, name: str, *, allow_takedown: bool = False, **arguments: Any) -> CallToolResult:
    server = make_server(ServiceAccess(url), allow_takedown=allow_takedown)
    async with Client(server) as client:
        return await client.call_tool(name, arguments)


async def result_of(url: str, name: str, **arguments: Any) -> dict[str, Any]:
    result = await call(url, name, **arguments)
    assert not result.is_error, result.content
    assert isinstance(result.structured_content, dict)
    return result.structured_content


def error_of(result: CallToolResult) -> str:
    assert result.is_error
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


async def test_the_indexes_are_listed_and_described(url: str) -> None:
    listed = (await result_of(url, "list_indexes"))["indexes"]
    assert [index["name"] for index in listed] == ["facts", "news"]
    facts = await result_of(url, "describe_index", index="news")
    assert (facts["metadata_columns"], facts["documents"], facts["has_chats"]) == (["source"], 1000, False)


async def test_a_question_is_answered_with_quoted_documents(url: str, broker: FakeBroker) -> None:
    answer = await result_of(url, "ask", **QUESTION, top_k=2, max_characters=20)
    assert [row["id"] for row in answer["proponents"]] == ["doc-0", "doc-1"]
    assert [row["untrusted_text"] for row in answer["proponents"]] == [text[:20] for text in TEXTS]
    assert [row["is_cut"] for row in answer["proponents"]] == [True, True]
    assert [row["strength"] for row in answer["proponents"]] == ["strong", "weak"]
    assert answer["proponents"][0]["interval"] == [0.75, 0.85]
    assert answer["about_untrusted_fields"] == UNTRUSTED
    assert answer["notice"] == "no strong influence found"
    (query, *_) = broker.queries[0]
    assert (query.prompt, query.completion, query.top_k) == ("Ada was born in", " London", 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"filter": {"source": ["wiki"]}},
        {"instead_of": " Paris"},
        {"direction": "both"},
        {"rescore": 20},
        {"join": "space"},
        {"order": "fused"},
        {"profile": "task"},
        {"group_by": "near_duplicates"},
        {"between": [0, -1]},
        {"verify": {"top": 2, "controls": 1, "learning_rate": None, "together": True}},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_the_fields_of_a_question_reach_the_worker(
    url: str, broker: FakeBroker, fields: dict[str, Any]
) -> None:
    await result_of(url, "ask", **QUESTION, **fields)
    (query, *_) = broker.queries[0]
    assert query.model_dump(mode="json", include=set(fields)) == fields


async def test_words_are_compared_if_that_is_asked_for(url: str, broker: FakeBroker) -> None:
    await result_of(url, "ask", **QUESTION, compare_words=True)
    await result_of(url, "ask", **QUESTION)
    assert [query.include for query, *_ in broker.queries] == [
        ("text", "metadata", "words"),
        ("text", "metadata"),
    ]


async def test_behaviours_are_listed_and_asked(url: str, broker: FakeBroker) -> None:
    assert await result_of(url, "list_behaviours", index="news") == {"behaviours": []}
    await result_of(url, "ask", index="news", behaviour="rude")
    assert broker.queries[0][0].behaviour == "rude"
    await result_of(url, "ask", index="news", behaviour="rude", instead_of_behaviour="kind")
    assert broker.queries[1][0].instead_of_behaviour == "kind"
    both = error_of(await call(url, "ask", **QUESTION, behaviour="rude"))
    assert "invalid_input" in both and "behaviour" in both


async def test_a_group_is_quoted_with_its_sum_and_its_first_documents(url: str, broker: FakeBroker) -> None:
    broker.texts = ["text"] * 30
    answer = await result_of(url, "ask", **QUESTION, group_by="source")
    (row,) = answer["proponents"]
    assert (row["group"]["untrusted_value"], row["group"]["documents"]) == ("wiki", 30)
    assert row["group"]["ids"] == [f"doc-{number}" for number in range(20)]
    assert row["group"]["score"] == pytest.approx(sum(0.8 - number / 10 for number in range(30)))


async def test_verified_documents_stand_beside_random_ones(url: str) -> None:
    answer = await result_of(url, "ask", **QUESTION, verify={"top": 1, "together": True})
    assert answer["proponents"][0]["verified"]["log_probability"] == -2.0
    assert answer["proponents"][1]["verified"] is None
    assert [control["id"] for control in answer["verification"]["controls"]] == ["doc-9"]
    assert answer["verification"]["together"]["ids"] == ["doc-0"]


async def test_influence_is_summed_by_a_column(url: str, broker: FakeBroker) -> None:
    totals = await result_of(
        url, "sum_influence", **QUESTION, by="source", top=5, threshold=2.0, instead_of=" Paris"
    )
    (query, *_), (spec,) = broker.queries[0], broker.totals_specs
    assert (query.prompt, query.completion, query.instead_of) == ("Ada was born in", " London", " Paris")
    assert (spec.by, spec.top, spec.threshold) == ("source", 5, 2.0)
    expected = totals_examples.TOTALS_RESPONSE["groups"]
    assert [group.pop("untrusted_value") for group in totals["groups"]] == [
        group["value"] for group in expected
    ]
    assert [group["sum"] for group in totals["groups"]] == [group["sum"] for group in expected]
    assert (totals["by"], totals["instead_of"], totals["completion"]) == ("source", " Paris", " London")
    await result_of(url, "sum_influence", index="news", behaviour="rude", by="source")
    assert (broker.queries[1][0].behaviour, broker.totals_specs[1].threshold) == ("rude", THRESHOLD_OF_SUMS)


async def test_a_chat_is_asked(url: str, broker: FakeBroker) -> None:
    chat = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In London."}]
    await result_of(url, "ask", index="news", messages=chat)
    assert broker.queries[0][0].messages == tuple(chat)


async def test_warnings_tell_what_was_probably_meant(url: str) -> None:
    answer = await result_of(url, "ask", index="news", prompt="a", completion="London")
    assert answer["warnings"] == ["no space before it (probably meant: ' London')"]


async def test_a_long_document_is_read_part_by_part(url: str) -> None:
    text, start = "", 0
    while start < len(TEXTS[1]):
        part = await result_of(
            url, "look_at_document", index="news", document_id="doc-1", start=start, max_characters=1000
        )
        assert (part["start"], part["characters"]) == (start, len(TEXTS[1]))
        text, start = text + part["untrusted_text"], part["end"]
    assert text == TEXTS[1]
    assert part["untrusted_metadata"] == {"source": "wiki"}
    beyond = await result_of(url, "look_at_document", index="news", document_id="doc-0", start=10_000)
    assert (beyond["untrusted_text"], beyond["start"], beyond["end"]) == ("", 10_000, 10_000)


async def test_a_link_is_opened(url: str) -> None:
    with ServiceClient(url) as service:
        link_id = service.make_link(**QUESTION).id
    kept = await result_of(url, "open_link", link_id=link_id)
    assert (kept["stale"], kept["removed"]) == (False, 0)
    assert [row["untrusted_text"] for row in kept["answer"]["proponents"]] == [text[:1000] for text in TEXTS]
    with ServiceClient(url) as service:
        service.delete_index("news")
    kept = await result_of(url, "open_link", link_id=link_id)
    assert (kept["stale"], kept["answer"]) == (True, None)


# What the tools say of themselves


async def test_only_tools_that_read_are_there_unless_takedowns_are_allowed(url: str) -> None:
    async with Client(make_server(ServiceAccess(url))) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == READ_ONLY
    assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools.values())
    assert "unknown" in error_of(await call(url, "take_down", index="news", document_id="doc-0")).lower()
    async with Client(make_server(ServiceAccess(url), allow_takedown=True)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    annotations = tools["take_down"].annotations
    assert annotations is not None
    assert (annotations.read_only_hint, annotations.destructive_hint) == (False, True)


async def test_a_tool_that_quotes_documents_says_that_they_are_no_instructions(url: str) -> None:
    async with Client(make_server(ServiceAccess(url), allow_takedown=True)) as client:
        tools = (await client.list_tools()).tools
        assert UNTRUSTED in (client.instructions or "")
    for tool in tools:
        assert tool.description
        quotes = "untrusted_" in json.dumps(tool.output_schema)
        assert (UNTRUSTED in tool.description) == quotes, tool.name


async def test_every_tool_has_a_schema_for_its_arguments_and_its_result(url: str) -> None:
    async with Client(make_server(ServiceAccess(url), allow_takedown=True)) as client:
        tools = (await client.list_tools()).tools
    for tool in tools:
        assert tool.output_schema is not None and tool.output_schema["type"] == "object"
        for name, field in tool.input_schema["properties"].items():
            assert field.get("description"), f"{tool.name}: {name}"


async def test_a_document_is_taken_down(url: str) -> None:
    done = await result_of(url, "take_down", allow_takedown=True, index="news", document_id="doc-1")
    assert done == {"index": "news", "id": "doc-1"}
    gone = error_of(await call(url, "look_at_document", index="news", document_id="doc-1"))
    assert "document_not_found" in gone
    answer = await result_of(url, "list_indexes")
    assert answer["indexes"]


# What goes wrong


@pytest.mark.parametrize(
    ("name", "arguments", "messages"),
    [
        ("describe_index", {"index": "none"}, ("index_not_found", "'none'")),
        ("ask", {"index": "news"}, ("invalid_input", "prompt")),
        ("ask", QUESTION | {"messages": [{"role": "assistant", "content": "x"}]}, ("invalid_input",)),
        ("ask", QUESTION | {"instead_of": " London"}, ("invalid_input", "a text that differs")),
        ("ask", QUESTION | {"filter": {}}, ("invalid_input", "filter")),
        ("ask", QUESTION | {"prompt": "bad"}, ("too_long", "at most 8 tokens", "request ")),
        ("ask", QUESTION | {"top_k": 51}, ("invalid_input: top_k: expected at most 50; got 51",)),
        ("ask", QUESTION | {"verify": {"tops": 3}}, ("invalid_input: verify.tops: no such field",)),
        ("ask", QUESTION | {"verify": 3}, ("invalid_input: verify: expected", "got 3")),
        ("ask", QUESTION | {"verify": {"top": 33}}, ("verify.top: expected at most 32; got 33",)),
        ("ask", QUESTION | {"group_by": "source", "order": "words"}, ("invalid_input", "group_by")),
        ("ask", QUESTION | {"between": [0]}, ("between",)),
        ("ask", QUESTION | {"timeout_s": 0}, ("timeout_s",)),
        ("ask", QUESTION | {"instead_of_behaviour": "rude"}, ("invalid_input", "`behaviour`")),
        ("sum_influence", QUESTION, ("by",)),
        ("sum_influence", {"index": "news", "by": "source"}, ("invalid_input", "prompt")),
        ("sum_influence", QUESTION | {"by": "source", "top": 101}, ("top",)),
        ("sum_influence", QUESTION | {"by": "source", "top_k": 3}, ("unknown argument 'top_k'",)),
        ("ask", QUESTION | {"topk": 3}, ("unknown argument 'topk'", "top_k")),
        ("ask", {"prompt": "a"}, ("index",)),
        ("describe_index", {"index": "News"}, ("invalid_input",)),
        ("look_at_document", {"index": "news", "document_id": "none"}, ("document_not_found",)),
        ("look_at_document", {"index": "news", "document_id": "doc-0", "start": -1}, ("start",)),
        ("open_link", {"link_id": "0" * 40}, ("link_not_found",)),
        ("open_link", {"link_id": "x"}, ("invalid_input",)),
        ("list_indexes", {"limit": 3}, ("unknown argument 'limit'", "expected none")),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_an_error_says_what_the_service_says(
    url: str, name: str, arguments: dict[str, Any], messages: tuple[str, ...]
) -> None:
    error = error_of(await call(url, name, **arguments))
    assert all(message in error for message in messages), error
    assert "pydantic" not in error


async def test_a_service_without_workers_is_an_error_of_the_tool(
    url: str, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.mcp.service_access._RETRY_S", 0.0)
    broker.error = NoWorker("no worker is alive")
    assert "no_worker: no worker is alive" in error_of(await call(url, "ask", **QUESTION))


async def test_a_service_that_is_not_there_is_an_error_of_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.mcp.service_access._RETRY_S", 0.0)
    assert "unavailable" in error_of(await call("http://127.0.0.1:9", "list_indexes"))
