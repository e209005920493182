"""What docs/observing.md and docs/grafana.json say of the metrics is what the service exports."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client import Metric

from service.indexes.canary_log import append_run
from service.settings import ServiceSettings
from tests.service.fake_broker import WORKER, FakeBroker
from tests.service.helpers import make_canary_run, scrape
from worker.messages import Reply
from worker.telemetry.metrics import WorkerMetrics

DOCS = Path(__file__).parents[3] / "docs"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


@pytest.fixture
def exported(client: TestClient, broker: FakeBroker, settings: ServiceSettings) -> dict[str, Metric]:
    """All families, each with a sample at least."""
    append_run(settings, make_canary_run())
    counted = WorkerMetrics()
    counted.jobs.labels("build", "succeeded").inc()
    counted.count_replies([Reply(query_id="q")])
    broker.heartbeats = [
        WORKER.model_copy(update={"metrics": counted.collect(resident=0, tokens_per_s=None)})
    ]
    client.get("/livez")
    found = scrape(client)
    assert all(family.samples for family in found.values())
    return found


def exposed_name(family: Metric) -> str:
    """A metric's name as the exposition and the table have it."""
    return family.name + ("_total" if family.type == "counter" else "")


def documented_labels() -> dict[str, set[str]]:
    """The metrics of the guide, and the labels of each."""
    text = (DOCS / "observing.md").read_text()
    rows = re.findall(r"^\| `(bergson_\w+)` \|(.*?)\|(.*)\|$", text, re.MULTILINE)
    assert all(what.strip() for _, _, what in rows)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels, _ in rows}


def read_dashboard() -> dict[str, Any]:
    return json.loads((DOCS / "grafana.json").read_text())


def iter_dashboard_queries() -> Iterator[str]:
    for panel in read_dashboard()["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def test_the_guide_lists_exactly_the_metrics_that_are_exported(exported: dict[str, Metric]) -> None:
    assert set(documented_labels()) == {exposed_name(family) for family in exported.values()}


def test_the_guide_names_the_labels_of_each_metric(exported: dict[str, Metric]) -> None:
    labels = {
        exposed_name(one): {key for sample in one.samples for key in sample.labels}
        for one in exported.values()
    }
    assert documented_labels() == {name: found - {"le"} for name, found in labels.items()}


def test_the_dashboard_asks_only_for_what_is_exported_by_labels_that_it_has(
    exported: dict[str, Metric],
) -> None:
    known = {one.name + suffix: one for one in exported.values() for suffix in SUFFIXES[one.type]}
    for query in iter_dashboard_queries():
        names = set(re.findall(r"bergson_\w+", query))
        assert names and names <= set(known), query
        has = {key for name in names for sample in known[name].samples for key in sample.labels}
        by = {label.strip() for group in re.findall(r"by \((.*?)\)", query) for label in group.split(",")}
        assert by | set(re.findall(r"(\w+)!?=", query)) <= has | {"instance"}, query


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = read_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)


def test_a_metric_of_the_workers_is_added_up_once_however_many_web_processes_show_it() -> None:
    for query in iter_dashboard_queries():
        if "http" not in query and "cache" not in query:
            assert re.search(r"\b(max|min)\b", query), query
