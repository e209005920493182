"""docs/observing.md and docs/grafana.json agree with the metrics that the service exports."""

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
    """All metric families, each with at least one sample."""
    append_run(settings, make_canary_run())
    metrics = WorkerMetrics()
    metrics.jobs.labels("build", "succeeded").inc()
    metrics.count_replies([Reply(query_id="q")])
    broker.heartbeats = [
        WORKER.model_copy(update={"metrics": metrics.collect(resident=0, tokens_per_s=None)})
    ]
    client.get("/livez")
    families = scrape(client)
    assert all(family.samples for family in families.values())
    return families


def exposed_name(family: Metric) -> str:
    """The name of a metric in the text format and in the guide."""
    return family.name + ("_total" if family.type == "counter" else "")


def documented_labels() -> dict[str, set[str]]:
    """The labels of each metric in the guide."""
    text = (DOCS / "observing.md").read_text()
    rows = re.findall(r"^\| `(bergson_\w+)` \|(.*?)\|(.*)\|$", text, re.MULTILINE)
    assert all(meaning.strip() for _, _, meaning in rows)
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
        exposed_name(family): {label for sample in family.samples for label in sample.labels}
        for family in exported.values()
    }
    assert documented_labels() == {name: names - {"le"} for name, names in labels.items()}


def test_the_dashboard_queries_only_exported_metrics_by_labels_that_they_have(
    exported: dict[str, Metric],
) -> None:
    families = {
        family.name + suffix: family for family in exported.values() for suffix in SUFFIXES[family.type]
    }
    for query in iter_dashboard_queries():
        names = set(re.findall(r"bergson_\w+", query))
        assert names and names <= set(families), query
        labels = {label for name in names for sample in families[name].samples for label in sample.labels}
        grouping = {
            label.strip() for group in re.findall(r"by \((.*?)\)", query) for label in group.split(",")
        }
        assert grouping | set(re.findall(r"(\w+)!?=", query)) <= labels | {"instance"}, query


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    panels = read_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels)
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)


def test_a_metric_of_the_workers_is_not_multiplied_by_the_number_of_web_processes() -> None:
    for query in iter_dashboard_queries():
        if "http" not in query and "cache" not in query:
            assert re.search(r"\b(max|min)\b", query), query
