"""The log of canary runs: its size is limited, callers see the runs of their indexes, and a deleted index has none."""

import pytest
from fastapi.testclient import TestClient

from bergson_core.schemas.build import BuildSpec
from service.indexes import canary_log
from service.indexes.canary_log import CanaryRun, append_run, iter_last_runs
from service.settings import ServiceSettings
from tests.service.fake_broker import publish_manifest
from tests.service.helpers import make_canary_run, make_key_header, sample_value, scrape


def test_the_last_run_of_an_index_is_shown(client: TestClient, settings: ServiceSettings) -> None:
    for number in range(3):
        append_run(settings, make_canary_run(mrr=number / 4))
    families = scrape(client)
    assert sample_value(families, "bergson_canary_mrr", index="facts") == 0.5
    assert sample_value(families, "bergson_canary_recall_at_10", index="facts") == 0.95
    assert sample_value(families, "bergson_canary_latency_seconds", index="facts", quantile="0.5") == 0.02
    assert sample_value(families, "bergson_canary_latency_seconds", index="facts", quantile="0.95") == 0.04
    assert sample_value(families, "bergson_canary_timestamp_seconds", index="facts") == 1_772_366_400.5


def test_a_figure_that_was_not_measured_has_no_value(client: TestClient, settings: ServiceSettings) -> None:
    append_run(settings, make_canary_run(mrr=None, recall_at_10=None))
    families = scrape(client)
    assert sample_value(families, "bergson_canary_mrr", index="facts") is None
    assert sample_value(families, "bergson_canary_recall_at_10", index="facts") is None
    assert sample_value(families, "bergson_canary_timestamp_seconds", index="facts")


def test_the_last_runs_are_kept_in_order(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_log, "MAX_RUNS", 3)
    for number in range(5):
        path = append_run(settings, make_canary_run(at=float(number)))
    runs = [CanaryRun.model_validate_json(line) for line in path.read_text().splitlines()]
    assert [run.at for run in runs] == [2, 3, 4]
    assert sorted(file.name for file in path.parent.iterdir()) == ["facts.jsonl", "facts.lock"]


def test_a_file_that_cannot_be_read_does_not_hide_others(
    client: TestClient, settings: ServiceSettings, spec: BuildSpec
) -> None:
    append_run(settings, make_canary_run())
    for name, content in (("empty", ""), ("odd", "{}\n"), ("text", "no JSON")):
        publish_manifest(settings.indexes_dir, name, spec)
        (settings.data_dir / "canary" / f"{name}.jsonl").write_text(content)
    assert [run.index for run in iter_last_runs(settings)] == ["facts"]
    assert sample_value(scrape(client), "bergson_canary_mrr", index="facts") == 0.75


def test_a_key_sees_the_canaries_of_its_indexes(
    client: TestClient, settings: ServiceSettings, spec: BuildSpec
) -> None:
    publish_manifest(settings.indexes_dir, "secret", spec)
    for name in ("facts", "secret"):
        append_run(settings, make_canary_run(name))
    for name, indexes, count in (("a", (), 2), ("b", ("facts",), 1), ("c", ("-",), 0)):
        families = scrape(client, **make_key_header(settings.data_dir, name=name, indexes=indexes))
        assert len(families["bergson_canary_mrr"].samples) == count


def test_runs_are_deleted_with_their_index(
    client: TestClient, settings: ServiceSettings, spec: BuildSpec
) -> None:
    path = append_run(settings, make_canary_run())
    assert client.delete("/index/facts").status_code == 204
    assert not list(path.parent.iterdir())
    append_run(settings, make_canary_run("never-built"))
    assert not scrape(client)["bergson_canary_mrr"].samples
