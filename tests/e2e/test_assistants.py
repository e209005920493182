"""An assistant finds the training documents behind an answer, and a link keeps an answer: with real processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client as Assistant
from mcp import StdioServerParameters

from service.cli.support.process_group import ProcessGroup
from service.client import Client
from tests.e2e.helpers import BERGSON, build_request

pytestmark = pytest.mark.e2e


async def test_an_assistant_asks_and_a_link_keeps_the_answer_but_for_a_document_that_was_taken_down(
    start_service: Callable[..., ProcessGroup], sources: Path
) -> None:
    system = start_service()
    with Client(system.url) as client:
        client.build("facts", **build_request(sources), wait=True)
        question: dict[str, Any] = {"index": "facts", "prompt": "Ada was born in", "completion": " London"}
        made = client.make_link(**question, top_k=3, include=["text", "metadata", "tokens"])
        answer = client.attribute(**question, top_k=3, include=["text", "metadata", "tokens"])
    assert made.answer is not None
    assert made.answer.results == answer.results, (
        "texts and tokens come from the index as the worker has them"
    )

    parameters = StdioServerParameters(command=BERGSON, args=["mcp"], env={"BERGSON_URL": system.url})
    async with Assistant(parameters) as assistant:
        quoted = (await assistant.call_tool("ask", question | {"top_k": 3})).structured_content
        assert quoted is not None and answer.results is not None
        assert [(row["id"], row["untrusted_text"]) for row in quoted["proponents"]] == [
            (row.id, row.prompt) for row in answer.results
        ]
        found = await assistant.call_tool(
            "look_at_document", {"index": "facts", "document_id": quoted["proponents"][0]["id"]}
        )
        assert found.structured_content is not None
        assert found.structured_content["untrusted_text"] == answer.results[0].prompt
        asked = question | {"top_k": 1, "verify": {"top": 1, "controls": 1}, "group_by": "source"}
        tested = (await assistant.call_tool("ask", asked | {"timeout_s": 120})).structured_content
        assert tested is not None
        (best,) = tested["proponents"]
        assert best["verified"]["log_probability"] < 0 and len(tested["verification"]["controls"]) == 1
        assert (best["group"]["untrusted_value"], best["group"]["ids"][0]) == (
            best["untrusted_metadata"]["source"],
            best["id"],
        )
        low, high = best["group"]["interval"]
        assert low < best["group"]["score"] < high
        summed = (await assistant.call_tool("sum_influence", question | {"by": "source"})).structured_content
        assert summed is not None and summed["documents"] == 40
        filtered = await assistant.call_tool("ask", question | {"filter": {"color": "blue"}})
        assert filtered.is_error and "color" in str(filtered.content)

    with Client(system.url) as client:
        assert client.link(made.id) == made
        gone = answer.results[0].id
        client.take_down("facts", gone)
        shown = client.link(made.id)
        assert shown.answer is not None and shown.removed == 1
        assert gone not in [row.id for row in shown.answer.results or ()]
        client.compact("facts", wait=True)
        assert client.link(made.id).stale
        assert client.link(made.id).removed == 1
